# syntax=docker/dockerfile:1
# The server, without PyTorch: docker build -t parity-models .
# docker run -p 8000:8000 -v ./bundle:/models/bundle:ro -v parm:/state parity-models

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /opt/parm \
    && /opt/parm/bin/pip install --no-cache-dir -c constraints.txt '.[grpc,otel,remote]' \
    && /opt/parm/bin/pip uninstall -y pip

FROM python:3.12-slim
COPY --from=build /opt/parm /opt/parm
ENV PATH=/opt/parm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PARM_HOST=0.0.0.0 \
    PARM_GRPC_PORT=8001 \
    PARM_LOG_FORMAT=json \
    PARM_STATE=/state
# What stand-ins learn in service, as bundles are read-only.
RUN install -d -o 10001 -g 10001 /state
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000 8001
# It asks without TLS; with a certificate, or on another port, give a check of your own.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["parm"]
CMD ["serve", "/models/bundle"]
