# The server with the command, as small as torch allows. Build arguments choose the build of torch: plain pip's is the default; an image for CPUs is far smaller with
# TORCH_INDEX_URL set to PyTorch's index of CPU builds.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_REQUIREMENT=torch==2.13.0
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*

# torch first, in a layer of its own: it changes rarely. What only compiling against it, debugging or testing it needs goes.
COPY constraints.txt ./
RUN python -m venv --without-pip /opt/cellstate \
    && pip --python /opt/cellstate/bin/python install --no-compile --constraint constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$TORCH_REQUIREMENT" \
    && torch=/opt/cellstate/lib/python3.11/site-packages/torch \
    && rm -rf "$torch/include" "$torch/share" "$torch/test" "$torch"/lib/*.a \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete \
    && strip --strip-unneeded "$torch/lib/libtorch_cpu.so" "$torch/lib/libtorch_python.so"

# Then what the project depends on, which is the same for every state of its code: an empty project of the same description asks for it.
COPY pyproject.toml ./
RUN mkdir -p client/cellstate service/cellstate_service && touch README.md LICENSE client/cellstate/__init__.py service/cellstate_service/__init__.py \
    && pip --python /opt/cellstate/bin/python install --no-compile --constraint constraints.txt "$TORCH_REQUIREMENT" ".[service,cli]" \
    && find /opt/cellstate -type d -name tests -path '*/site-packages/*' -not -path '*/torch/*' -prune -exec rm -rf {} +

# Bytecode of just the modules that serving imports, the standard library's among them (the base image has none), so that a read-only container starts fast.
COPY README.md LICENSE ./
COPY client client
COPY service service
RUN pip --python /opt/cellstate/bin/python install --no-compile --no-deps --force-reinstall . \
    && PYTHONPYCACHEPREFIX=/opt/cellstate/bytecode /opt/cellstate/bin/python -W ignore -c 'import cellstate_service.app, cellstate_service.commands, cellstate.cli.app'

# Readable for the server's user, whatever the permissions in the checkout are.
COPY models /models
RUN chmod -R a+rX /models


FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="cellstate" \
      org.opencontainers.image.description="Serves recurrent networks over gRPC and keeps their state between calls" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/cellstate /opt/cellstate
COPY --from=build /models /models
# Where the server's user may write: a volume there keeps the sessions.
RUN install --directory --owner 65532 --group 65532 --mode 700 /data
# Inside a container loopback reaches nobody, so both ports listen on every address; which of them leave the host is decided where they are published.
ENV PATH=/opt/cellstate/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/cellstate/bytecode \
    PYTHONUNBUFFERED=1 \
    CELLSTATE_HOST=0.0.0.0 \
    CELLSTATE_METRICS_HOST=0.0.0.0 \
    CELLSTATE_MODELS=/models \
    CELLSTATE_STORE__PATH=/data/sessions.db
WORKDIR /tmp
USER 65532:65532
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["cellstate", "healthcheck"]
ENTRYPOINT ["cellstate"]
CMD ["serve"]
