# engine.run on a Jetson with JetPack 7.2: TensorRT, and OpenVINO behind it. Never executed.
#
# BASE is an arm64 image with TensorRT for its Python 3.11 or later and the CUDA toolkit, such as NVIDIA's TensorRT image
# (nvcr.io/nvidia/tensorrt) whose release notes name the TensorRT of your JetPack: 10.16.2 and CUDA 13.2 for 7.2. A plan
# loads in the version that built it alone, so build the plans in this image too, on the board they are for.
#
#   docker build -f docker/jetson.Dockerfile --build-arg BASE=... -t gemmnet-edge-jetson .
#   docker run --rm --runtime nvidia -v "$PWD:/data" -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro \
#       --entrypoint python3 gemmnet-edge-jetson -m export.build --bundle bundle
#   docker run --rm --runtime nvidia -v "$PWD:/data" -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro \
#       gemmnet-edge-jetson --bundle bundle --rgir ortho.tif --ndsm height.tif --output map
#
# nvpmodel's folder tells the power mode, which measured latencies are kept with.

ARG BASE
FROM ${BASE}
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY export export
# The image's TensorRT is a package of its system Python; pycuda is compiled against the toolkit and a stub of the driver.
RUN python3 -m venv --system-site-packages /venv && \
    CPATH=/usr/local/cuda/include LIBRARY_PATH=/usr/local/cuda/lib64/stubs \
    /venv/bin/pip install --no-cache-dir ".[gpu,onnxruntime,flight]" && \
    /venv/bin/python -c "import tensorrt; print(tensorrt.__version__)"
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /data
EXPOSE 9102
ENTRYPOINT ["python3", "-m", "engine.run"]
