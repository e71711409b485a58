"""A seccomp filter for bubblewrap: system calls that no solution needs and that widen what a program can reach.

Namespaces already keep the program in. The filter takes away what they leave: sockets of any family (vsock knows no
network namespace), memory that no limit counts (shared, or pinned in pipes), tracing of its own kind, and new
namespaces.
"""

import platform
import struct

_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW*
_X32 = 0x40000000

# Machine -> (audit architecture, clone, denied calls by number).
_MACHINES = {
  "x86_64": (0xC000003E, 56, {
    "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "semget": 64, "msgget": 68, "ptrace": 101, "syslog": 103,
    "uselib": 134, "personality": 135, "modify_ldt": 154, "pivot_root": 155, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "io_setup": 206, "clock_settime": 227, "mq_open": 240, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "vmsplice": 278, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321,
    "userfaultfd": 323,
  }),
  "aarch64": (0xC00000B7, 220, {
    "io_setup": 0, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "vmsplice": 75,
    "acct": 89, "personality": 92, "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
    "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162,
    "settimeofday": 170, "adjtimex": 171, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "shmctl": 195,
    "shmat": 196, "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225,
    "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
  }),
}
# New calls have the same number on all machines.
_COMMON = {
  "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
  "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442,
  "memfd_secret": 447,
}
_CLONE3 = 435  # its flags lie in memory, where a filter cannot look: as if unknown, so that libc takes clone instead


def program(machine: str | None = None) -> bytes:
  """The filter as bubblewrap's --seccomp takes it. ValueError on a machine that it is not written for."""
  machine = machine or platform.machine()
  if machine not in _MACHINES:
    raise ValueError(f"the sandbox is for {' and '.join(_MACHINES)}, this is {machine}")
  architecture, clone, denied = _MACHINES[machine]
  code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
  if machine == "x86_64":
    code += [(_GREATER_EQUAL, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
  for number in sorted([*denied.values(), *_COMMON.values()]):
    code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | _EPERM)]
  code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
  code += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS),
           (_RETURN, 0, 0, _FAIL | _EPERM), (_RETURN, 0, 0, _ALLOW)]
  return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
