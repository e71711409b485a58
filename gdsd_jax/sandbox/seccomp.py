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

# Machine -> (audit architecture, clone).
_MACHINES = {"x86_64": (0xC000003E, 56), "aarch64": (0xC00000B7, 220)}
# Denied call -> its number on each of these machines, None on one that has no such call.
_DENIED = {
  "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "socket": (41, 198), "semget": (64, 190),
  "msgget": (68, 186), "ptrace": (101, 117), "syslog": (103, 116), "uselib": (134, None), "personality": (135, 92),
  "modify_ldt": (154, None), "pivot_root": (155, 41), "adjtimex": (159, 171), "chroot": (161, 51), "acct": (163, 89),
  "settimeofday": (164, 170), "mount": (165, 40), "umount2": (166, 39), "swapon": (167, 224), "swapoff": (168, 225),
  "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
  "ioperm": (173, None), "init_module": (175, 105), "delete_module": (176, 106), "quotactl": (179, 60),
  "io_setup": (206, 0), "clock_settime": (227, 112), "mq_open": (240, 180), "kexec_load": (246, 104),
  "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "unshare": (272, 97), "vmsplice": (278, 75),
  "perf_event_open": (298, 241), "fanotify_init": (300, 262), "name_to_handle_at": (303, 264),
  "open_by_handle_at": (304, 265), "clock_adjtime": (305, 266), "setns": (308, 268), "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271), "kcmp": (312, 272), "finit_module": (313, 273), "memfd_create": (319, 279),
  "kexec_file_load": (320, 294), "bpf": (321, 280), "userfaultfd": (323, 282),
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
  architecture, clone = _MACHINES[machine]
  column = list(_MACHINES).index(machine)
  denied = {numbers[column] for numbers in _DENIED.values()} - {None} | set(_COMMON.values())
  code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
  if machine == "x86_64":
    code += [(_GREATER_EQUAL, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
  for number in sorted(denied):
    code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | _EPERM)]
  code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
  code += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS),
           (_RETURN, 0, 0, _FAIL | _EPERM), (_RETURN, 0, 0, _ALLOW)]
  return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
