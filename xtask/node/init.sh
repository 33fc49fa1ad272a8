#!/bin/bash
# Process 1 of the node's namespaces: makes them fit to live in, then reaps what is left behind.
# Whoever ends it ends everything in the node.
set -euo pipefail
mount --make-rshared /
# What the container runtime keeps outside the run folder must not reach the machine.
mkdir -p /var/lib/cni /var/log/containers
for folder in /run /var/lib/cni /var/log/containers; do mount -t tmpfs millstream "$folder"; done
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
touch "{{run}}/namespaces-ready"
sleep infinity &
while :; do wait -n || true; done
