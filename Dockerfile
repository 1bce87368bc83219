# syntax=docker/dockerfile:1
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# A certificate bundle for pip, where the network needs one.
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Such as imagecodecs, with which retrieves decode JPEG, JPEG-LS and JPEG 2000, or httpx for webhooks.
ARG EXTRA_PACKAGES
WORKDIR /build
RUN python3 -m venv /opt/scp-server
COPY requirements.lock ./
RUN /opt/scp-server/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY scp_server ./scp_server
RUN /opt/scp-server/bin/pip install --no-deps --no-build-isolation . \
    && if [ -n "${EXTRA_PACKAGES:-}" ]; then /opt/scp-server/bin/pip install ${EXTRA_PACKAGES}; fi \
    && /opt/scp-server/bin/python -m compileall -q /opt/scp-server/lib \
    && /opt/scp-server/bin/pip uninstall --yes setuptools pip

FROM ${BASE}
RUN groupadd --system --gid 10001 scp \
    && useradd --system --uid 10001 --gid scp --home-dir /data --no-create-home --shell /usr/sbin/nologin scp \
    && install --directory --owner scp --group scp --mode 0750 /data
COPY --from=build /opt/scp-server /opt/scp-server
# A container's loopback is its own: inside, the server listens on every address, and publishing a port decides.
ENV PATH=/opt/scp-server/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SCP_SERVER_LISTEN__HOST=0.0.0.0 \
    SCP_SERVER_HTTP__HOST=0.0.0.0 \
    SCP_SERVER_DATA_DIR=/data \
    SCP_SERVER_LOG__FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 11112 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('SCP_SERVER_HTTP__PORT', '8080') + '/healthz', timeout=2)"]
ENTRYPOINT ["scp-server"]
CMD ["serve"]
