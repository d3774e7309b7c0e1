#!/bin/sh
# What `./dev demo` shows, told as it goes. Usage: demo.sh DIRECTORY-OF-BINARIES
set -eu
BIN=$(cd "${1:-target/dist}" && pwd)
PATH="$BIN:$PATH:/usr/sbin:/sbin"
export PATH
LAB=demo
started=$(date +%s)

if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') off=$(printf '\033[0m'); else bold='' dim='' off=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
tell() { printf '%s\n' "$*" | fold -s -w 100; }
# Shows a command, then runs it.
run() { printf '%s$ %s%s\n' "$dim" "$*" "$off"; "$@"; }
in_node() { node=$1; shift; printf '%s%s$ %s%s\n' "$dim" "$node" "$*" "$off"; ip netns exec "cw-$LAB-$node" "$@"; }
pod_ip() { causeway lab pod list --name "$LAB" | awk -v pod="$1" '$1 == pod { split($4, ips, ","); print ips[1] }'; }

clean() { causeway lab down --name "$LAB" >/dev/null 2>&1 || true; }
trap clean EXIT
trap 'exit 130' INT TERM
clean

title "1. Three nodes"
tell "Kubernetes asks of its network that every pod has an address of its own and reaches every other pod without translation. Causeway builds that from what Linux has anyway. The lab makes a control-plane node and three workers as network namespaces on this machine, joined by a switch, with a real agent in each and a Kubernetes API of its own. First the configuration that every tutorial shows: the bridge cni0 on each node, and a route per node."
run causeway lab up --name "$LAB" --nodes 3 --attach bridge --road direct --family ipv4

title "2. Six pods"
tell "Each pod is made as a container runtime makes it: a network namespace, and the plugin called with a JSON configuration. The plugin makes a veth pair, puts one end into the pod and the other into the bridge, and takes an address from the node's subnet. The agent wrote the configuration when its node was ready; on each node the subnet is that node's."
run causeway lab shell --name "$LAB" node-1 -- cat /etc/cni/net.d/05-causeway.conflist
for n in 1 2 3; do
    run causeway lab pod create --name "$LAB" "web-$n" --node "node-$n"
    run causeway lab pod create --name "$LAB" "db-$n" --node "node-$n"
done
run causeway lab pod list --name "$LAB"

title "3. What node-1 holds now"
tell "The bridge has the first address of the node's subnet, 10.244.1.1: it is the pods' gateway."
in_node node-1 ip -br addr
tell "One route per other node leads to its pods: the same line that a tutorial has you type by hand. 'proto 203' marks the routes that Causeway made; it never touches another."
in_node node-1 ip route
tell "The bridge's ports are isolated and nothing is learned or flooded: the node knows where its pods are."
in_node node-1 bridge -d link
tell "Packets that leave the cluster get the node's address (masquerade); packets between pods do not. Tunnel ports are closed, and each pod's port passes only that pod's own addresses."
in_node node-1 nft list ruleset

title "4. Everybody reaches everybody"
tell "Every pair of pods, nodes to pods, and pods to a server outside the cluster, with the time of a round trip."
run causeway lab ping --name "$LAB"

title "5. Out of the cluster"
tell "The server outside knows no way back to pod addresses. It sees the node's."
run causeway lab exec --name "$LAB" web-1 -- causeway lab fetch http://203.0.113.10:8080/
tell "Between pods the server sees the pod's own address:"
run causeway lab exec --name "$LAB" web-1 -- causeway lab fetch "http://$(pod_ip db-2):8080/"

title "6. The agent restarts, the network stays"
tell "Nothing in the data path needs the agent. It is killed and started again while a packet goes from node-1 to node-2 every millisecond."
causeway lab watch-loss --name "$LAB" web-1 db-2 --interval 1ms --seconds 4 &
loss=$!
sleep 1
run causeway lab agent restart --name "$LAB" node-1 --kill
wait "$loss"

title "7. Somebody deletes a route"
in_node node-1 ip route del 10.244.2.0/24
sleep 1
tell "The agent heard of it from the kernel and put it back:"
in_node node-1 ip route show 10.244.2.0/24
run causeway lab down --name "$LAB"

title "8. The same, routed, over VXLAN, with IPv4 and IPv6"
tell "No bridge: each pod has a /32 and a /128, and the node a route to each. Between the nodes packets travel inside UDP, as they must where the network between nodes knows nothing of pods."
run causeway lab up --name "$LAB" --nodes 3 --attach routed --road vxlan --family dual
for n in 1 2 3; do
    run causeway lab pod create --name "$LAB" "web-$n" --node "node-$n"
    run causeway lab pod create --name "$LAB" "db-$n" --node "node-$n"
done
in_node node-1 ip route
in_node node-1 ip -6 route
in_node node-1 bridge fdb show dev cw-vxlan
in_node node-1 ip -d link show cw-vxlan
run causeway lab ping --name "$LAB"
run causeway lab down --name "$LAB"

title "Done in $(($(date +%s) - started)) s"
tell "Nothing is left behind. What to try next, with target/dist in your PATH:"
cat <<'TEXT'
  causeway lab up --nodes 3 --topology two-subnets   # a router between the nodes: auto takes VXLAN across it
  export KUBECONFIG=$(causeway lab kubeconfig); kubectl get nodes -o wide
  kubectl run hello --image=any --port=8080; kubectl get pods -o wide
  causeway lab shell node-1                          # be on a node
  causeway node script                               # in that shell: the node's network as a shell script to read
  causeway lab down
TEXT
