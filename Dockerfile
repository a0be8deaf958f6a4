# The image of a cluster's machines: Ray for GPUs, and this project with the versions of constraints.txt. A machine that
# starts from it installs nothing while its GPU is paid for. NOT built for real; tests/clusters/test_image.py checks it.
#
#     docker build --tag REGISTRY/tune_rescon:2.60.0-py311-gpu .        # the tag says which Ray and Python are in it
#     docker push REGISTRY/tune_rescon:2.60.0-py311-gpu
#
# Searches in Google's or Azure's storage: --build-arg EXTRAS="cluster gcs", or "cluster azure". A head without a GPU
# starts faster from a smaller image: --build-arg BASE=rayproject/ray:2.60.0-py311-cpu.
ARG BASE=rayproject/ray:2.60.0-py311-gpu
FROM ${BASE}
ARG EXTRAS="cluster s3"

# The base image's user `ray`, as a number: Kubernetes must see that it is not root.
USER 1000:100
RUN mkdir -p /home/ray/tune_rescon_source
WORKDIR /home/ray/tune_rescon_source

# The requirements take minutes and change rarely: their layer is kept when only the code has changed.
COPY --chown=1000:100 pyproject.toml constraints.txt ./
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('setuptools', *project['dependencies'], *(line for extra in os.environ['EXTRAS'].split() for line in project['optional-dependencies'][extra]), sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# In the place, and with the stamp, that the setup commands of cluster.yaml look for: they then install nothing.
COPY --chown=1000:100 README.md LICENSE ./
COPY --chown=1000:100 search_spaces ./search_spaces
COPY --chown=1000:100 tune_rescon ./tune_rescon
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && cat pyproject.toml constraints.txt | sha256sum > /home/ray/.tune_rescon_installed \
    && python -m tune_rescon.search --space digits --dry-run --plain

# A job begins here. In tune_rescon_source, Python would take the folder of the package before what is installed.
WORKDIR /home/ray
