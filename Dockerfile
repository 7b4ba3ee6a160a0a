# bonafide on a machine with a CUDA device: torch brings CUDA, the machine needs NVIDIA's driver and container toolkit.
# Unproven: it was linted, and built nowhere.
#
#     docker build --tag bonafide .
#     docker run --rm --gpus all bonafide               make demo
#     docker run --rm --gpus all bonafide make test
FROM python:3.13-slim-trixie

# Debian removes old versions of these two, so that a pinned one would soon not be found.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 bonafide

USER 1000
WORKDIR /home/bonafide/project
ENV EXTRA=gpu PIP_NO_CACHE_DIR=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What installation reads comes first, so that an edit of other files installs nothing anew.
COPY --chown=1000:1000 Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=1000:1000 pipeline/__init__.py pipeline/
COPY --chown=1000:1000 stages/__init__.py stages/
RUN make .venv/installed-gpu-test
COPY --chown=1000:1000 . .

CMD ["make", "demo"]
