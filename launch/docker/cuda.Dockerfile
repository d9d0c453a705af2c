# maxlm for NVIDIA GPUs, from the lock file: docker build --file launch/docker/cuda.Dockerfile --tag maxlm:cuda .
FROM python:3.12-slim-bookworm
WORKDIR /maxlm
COPY requirements/cuda.lock requirements/
RUN python -m pip install --no-cache-dir --require-hashes --requirement requirements/cuda.lock
COPY pyproject.toml ./
COPY maxlm maxlm
COPY data_pipeline data_pipeline
COPY launch launch
COPY configs configs
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .
# Results go to volumes that this user may write to.
RUN useradd --uid 1000 --create-home maxlm && chown maxlm /maxlm
USER maxlm
CMD ["maxlm", "--help"]
