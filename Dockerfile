# An image with the code in /gdsd_jax, where `python launch/train.py …` and the commands gdsd-train … work:
#
#   docker build -t gdsd_jax .                                  CPU
#   docker build -t gdsd_jax --build-arg DEVICE=cuda .          NVIDIA GPUs: docker run --gpus=all …
#   docker build -t gdsd_jax --build-arg DEVICE=tpu .           Cloud TPUs (docs/gke.md)
#
# --build-arg EXTRAS=hub,math,wandb says which extras of setup.py come along. The sandbox of the code task makes
# namespaces, which Docker's default profile forbids: docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

RUN apt-get update \
  && apt-get install --yes --no-install-recommends bubblewrap \
  && rm -rf /var/lib/apt/lists/*

WORKDIR /gdsd_jax
ARG DEVICE=cpu
ARG EXTRAS=hub,math
ENV PYTHONUNBUFFERED=1

# What the package needs, before its code: a layer that stays while the code changes.
COPY setup.py pyproject.toml README.md ./
COPY gdsd_jax/__init__.py gdsd_jax/
RUN case "$DEVICE" in \
    cpu) extras="$EXTRAS" ;; \
    cuda | tpu) extras="$DEVICE${EXTRAS:+,$EXTRAS}" ;; \
    *) echo "DEVICE: must be cpu, cuda or tpu, not $DEVICE" >&2; exit 1 ;; \
  esac \
  && pip install --no-cache-dir ".${extras:+[$extras]}"

COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
