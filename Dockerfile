# hfcap in a container, with everything that the README's two commands need; they start without a network then:
#   docker build -t hfcap .                                  PyTorch with CUDA, the default build for Linux
#   docker build -t hfcap --build-arg TORCH="torch ..." .    another one: for CPUs what pytorch.org shows under "Get started"
#   docker run --rm --gpus all hfcap                         the quick start
#   docker run --rm hfcap bash scripts/test.sh               linters, types and all tests
#   docker run --rm -v "$PWD:/work" -w /work hfcap hfcap caption /work/runs/mine photos -o captions.csv
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Where empty, constraints.txt names the version (scripts/environment.sh).
ARG TORCH=
# "test" for the tests as well, "" for hfcap alone: about 100 MB less.
ARG EXTRAS=test

RUN useradd --create-home --uid 1000 hfcap && mkdir /hfcap /opt/hfcap && chown hfcap /hfcap /opt/hfcap
USER hfcap
WORKDIR /hfcap
COPY --chown=hfcap . .
ENV HFCAP_VENV=/opt/hfcap HFCAP_TORCH="${TORCH}" PIP_NO_CACHE_DIR=1 PATH=/opt/hfcap/bin:${PATH}
RUN bash -c 'source scripts/environment.sh && prepare_environment "$EXTRAS"'
CMD ["bash", "scripts/quickstart.sh"]
