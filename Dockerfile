# syntax=docker/dockerfile:1
# A Rayvisor host: Ray, Rayvisor and a Debian guest image. Needs BuildKit.
#
#   docker build --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" -t rayvisor:0.1.0 .
#
# The same commit gives the same Python packages (by hash) and the same wheel. The kernel of the
# guest image is the one that Debian's archive holds on the day; its version is in the manifest.

ARG PYTHON=3.11.14

# --- Build: a compiler, apt for the guest image, and all that must not be shipped -----------------
FROM python:${PYTHON}-bookworm AS build
ARG SOURCE_DATE_EPOCH=0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
WORKDIR /build

COPY k8s/requirements.txt k8s/requirements-build.txt ./
RUN python -m venv /opt/rayvisor/venv && \
    /opt/rayvisor/venv/bin/pip install --require-hashes --no-deps --only-binary :all: --no-compile \
        -r requirements.txt && \
    python -m venv /opt/builder && \
    /opt/builder/bin/pip install --require-hashes --no-deps --only-binary :all: \
        -r requirements-build.txt

COPY . .
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . && \
    /opt/rayvisor/venv/bin/pip install --no-deps --no-index --no-compile /wheel/*.whl && \
    /opt/rayvisor/venv/bin/pip uninstall --yes pip setuptools && \
    python -m compileall -q --invalidation-mode unchecked-hash /opt/rayvisor/venv/lib

RUN XDG_CACHE_HOME=/opt/rayvisor/cache /opt/rayvisor/venv/bin/rayvisor image build debian && \
    rm -rf /opt/rayvisor/cache/rayvisor/tmp /opt/rayvisor/cache/rayvisor/locks && \
    mkdir /opt/rayvisor/examples && \
    cp examples/*.py /opt/rayvisor/examples/ && \
    chmod -R a+rX,go-w /opt/rayvisor

# --- Run: no compiler, no package manager of Python's, no root ------------------------------------
FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/rayvisor /opt/rayvisor
COPY --chmod=755 k8s/entrypoint /usr/local/bin/rayvisor-entrypoint
RUN groupadd --gid 10001 rayvisor && \
    useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin rayvisor

# The guest images are read only; what is written goes below /tmp, which a pod mounts.
ENV PATH=/opt/rayvisor/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    XDG_CACHE_HOME=/opt/rayvisor/cache \
    XDG_STATE_HOME=/tmp/state
USER 10001:10001
WORKDIR /home/rayvisor
ENTRYPOINT ["rayvisor-entrypoint"]
CMD ["ray", "start", "--head", "--block"]
