#!/bin/sh
# two_hosts.sh MPIRUN COMMAND...: runs COMMAND as two ranks, each in a network and host name of its own, joined by a
# virtual cable, so that they can talk by TCP only. 77: this is not allowed here (it takes root and iproute2).
set -u
mpirun=$1
shift
here=nc$$a there=nc$$b
command -v ip >/dev/null && ip netns add $here 2>/dev/null && ip netns add $there 2>/dev/null || exit 77
agent=$(mktemp)
trap 'ip netns del $here; ip netns del $there; rm -f "$agent"' EXIT
ip link add v$$a netns $here type veth peer name v$$b netns $there 2>/dev/null || exit 77
ip -n $here addr add 10.98.0.1/24 dev v$$a
ip -n $there addr add 10.98.0.2/24 dev v$$b
for side in "$here v$$a" "$there v$$b"; do
  ip -n ${side% *} link set lo up
  ip -n ${side% *} link set ${side#* } up
done
# How mpirun reaches the other host, in place of ssh.
printf '#!/bin/sh\nshift\nexec ip netns exec %s unshare -u sh -c "hostname %s; $*"\n' $there $there >"$agent"
chmod +x "$agent"
ip netns exec $here unshare -u sh -c 'hostname "$1"; shift; exec "$@"' sh $here \
  "$mpirun" --mca plm_rsh_agent "$agent" --mca btl tcp,self --mca btl_tcp_if_include 10.98.0.0/24 \
  --mca oob_tcp_if_include 10.98.0.0/24 --host 10.98.0.1:1,10.98.0.2:1 -n 2 "$@"
