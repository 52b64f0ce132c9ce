#!/bin/busybox sh
# The first process of a kernel test: mounts what a node has, loads the modules, runs the command,
# tells its exit status on the second serial port and goes down.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
while read -r module; do
	insmod "/modules/$module" || echo "insmod $module failed" >/dev/console
done </modules/order
ip link set lo up
# Raw: a terminal would turn each newline into two characters.
stty -F /dev/ttyS1 raw
cd /payload || reboot -f
# The busybox shell prefers its own applets to what is on the PATH; a command that is a program of its
# own finds the real `ip` first.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
setsid /payload/run >/dev/ttyS1 2>&1 </dev/null
echo "@@exit $?" >/dev/ttyS1
# Lets the serial port drain before the machine is gone.
sleep 0.1
reboot -f
