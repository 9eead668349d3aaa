# engine.run on a processor of any x86-64 or 64-bit Arm machine: OpenVINO, and ONNX Runtime behind it. Never executed.
#
#   docker build -f docker/cpu.Dockerfile -t gemmnet-edge .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" gemmnet-edge --rgir ortho.tif --output map
#   docker run --rm --entrypoint python gemmnet-edge -m engine.doctor

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir ".[onnxruntime,flight]"

FROM python:3.12-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home pilot
USER pilot
WORKDIR /data
# --metrics 0.0.0.0:9102 serves figures and /healthz there
EXPOSE 9102
ENTRYPOINT ["python", "-m", "engine.run"]
