#!/bin/sh
# Install what the test cluster needs on Debian or Ubuntu. The services themselves are not started: tests bring their own.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm slurmdbd munge mariadb-server
