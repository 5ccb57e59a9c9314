# The command line with everything it needs, on CPUs or NVIDIA GPUs:
#   docker build -t scaling .
#   docker run --rm -it --ipc=host -v "$PWD/workspace:/workspace" scaling submit quickstart
# With GPUs add --gpus all, and build with --build-arg WHEELS=https://download.pytorch.org/whl/cu126.
FROM python:3.11-slim

# Compilers are needed where Triton or torch.compile run; git tells which version of the code trained a run.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ git && rm -rf /var/lib/apt/lists/*

ARG WHEELS=https://download.pytorch.org/whl/cpu
WORKDIR /opt/scaling
COPY . .
RUN git config --system --add safe.directory /opt/scaling \
    && pip install --no-cache-dir --extra-index-url "$WHEELS" -c constraints.txt --editable ".[all]"

ENV SCALING_WORKSPACE=/workspace MLFLOW_DISABLE_TELEMETRY=true
VOLUME /workspace
WORKDIR /workspace
EXPOSE 5000
ENTRYPOINT ["scaling"]
