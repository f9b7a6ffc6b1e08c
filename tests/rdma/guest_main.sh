# First process of the guest from its root on: memory limits, the network asked for, then the command; its exit status goes
# out through the second port. 121: the network could not be made. Sourced files: options (NETWORK, FOLDER), environment.
. /run/guest/environment
. /run/guest/options
# The port takes 32 KiB per write and opens once, unlike what programs expect of an output: a pipe is between.
mkfifo /run/guest/output
cat /run/guest/output >/dev/vport0p1 &
copier=$!
exec >/run/guest/output 2>&1 </dev/null
finish() {
  for p in /proc/[0-9]*; do  # what the command left running would keep the pipe open; kernel threads have no /exe
    p=${p#/proc/}
    [ "$p" = $$ ] || [ "$p" = $copier ] || ! [ -e "/proc/$p/exe" ] || kill -KILL "$p"
  done
  exec >/dev/null 2>&1
  wait $copier
  echo "$1" >/dev/vport0p2
  /bin/busybox poweroff -f
}
mkdir -p /dev/shm /dev/pts /run/lock /run/netns
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
ulimit -l unlimited
ulimit -c 0
ip link set lo up

# rxe's RDMA MTU is the largest power of two that fits: 4200 bytes carry 4096.
add_device() {  # add_device DEVICE INTERFACE [NAMESPACE]
  local in=(); [ -n "$3" ] && in=(ip netns exec "$3")
  "${in[@]}" rdma link add "$1" type rxe netdev "$2" || { echo "guest: no Soft-RoCE device on $2 ${3:+of namespace $3}"; finish 121; }
}
for network in ${NETWORK//,/ }; do
  case $network in
    none) ;;
    dummy)
      ip link add d0 type dummy && ip link set d0 up mtu 4200 && ip addr add 10.78.0.1/24 dev d0
      add_device rxe0 d0 ;;
    netns*)
      ip link add br0 type bridge && ip link set br0 up mtu 4200
      for i in $(seq "${network#netns}"); do
        ip netns add "n$i" && ip -n "n$i" link set lo up
        ip link add "e$i" mtu 4200 type veth peer name eth0 mtu 4200 netns "n$i" && ip link set "e$i" master br0 up
        ip -n "n$i" addr add "10.77.0.$i/24" dev eth0 && ip -n "n$i" link set eth0 up
        add_device "rxe$i" eth0 "n$i"
      done ;;
  esac
done
# The address of a device appears some ten milliseconds after it: programs that start earlier would not find it.
for d in /sys/class/infiniband/*; do
  for _ in $(seq 100); do [ -d "$d" ] || break; grep -qs ffff: "$d"/ports/1/gids/* && break; sleep 0.05; done
done
cd "$FOLDER" || cd /
echo begun >/dev/vport0p2
setsid bash /run/guest/command
finish $?
