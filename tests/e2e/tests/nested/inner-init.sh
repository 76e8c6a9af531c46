#!/bin/busybox sh
# The first process of the guest: says what it finds, is moved meanwhile, waits for the power button, and powers off.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b insmod /button.ko
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio-rng \
	virtio_balloon virtio_console vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	$b insmod /modules/$module.ko
done
echo "INNER up: $($b nproc) CPUs, Linux $($b uname -r)"

$b dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null
sum=$($b sha256sum </data)
read -r before rest </proc/uptime
$b dd if=/data of=/dev/vda bs=64k 2>/dev/null
$b sync
echo "INNER wrote $($b sha256sum </data | $b head -c 64)"
echo "INNER disk of $($b cat /sys/block/vda/size) sectors, named $($b cat /sys/block/vda/serial)"
$b dd if=/dev/hwrng of=/random bs=256 count=1 2>/dev/null
echo "INNER entropy: $($b wc -c </random) bytes"
# What was said before must be out, or the two consoles mix: changing this one waits for that.
$b stty -F /dev/ttyS0 -echo
{
	$b stty -echo
	echo "INNER says this on its second console"
	echo "INNER second console: $($b stty size)"
	echo "INNER waits for a line"
	read -r line
	echo "INNER reads: $line"
} <>/dev/hvc0 >&0
/bin/vsock-echo connect 1024 1000000
/bin/vsock-echo listen 52
free() { $b awk '/^MemFree/ { print $2 }' /proc/meminfo; }
free_before=$(free)
echo "INNER ready to be moved"

# Only a guest that was moved is pressed the button of, so what follows happened in the second process.
button=/sys/firmware/acpi/interrupts/ff_pwr_btn
rounds=0
read -r presses rest <$button
while [ "$presses" = 0 ] && [ $rounds -lt 500 ]; do
	rounds=$((rounds + 1))
	echo "INNER waits for the button, $rounds"
	$b usleep 200000
	read -r presses rest <$button
done
echo "INNER button presses: $presses"
read -r after rest </proc/uptime
echo "INNER uptime before and after: $before $after"
[ "$sum" = "$($b sha256sum </data)" ] && echo "INNER memory is the same"
echo "INNER free memory before and after: $free_before $(free) KiB"
/bin/vsock-echo connect 1024 300000
echo "INNER generation: $($b cat /sys/bus/acpi/devices/VMGENCTR:00/path), told $($b awk '/Ged/ { print $2 + $3 }' /proc/interrupts) times"
echo 3 >/proc/sys/vm/drop_caches
[ "$sum" = "$($b dd if=/dev/vda bs=64k count=16 2>/dev/null | $b sha256sum)" ] && echo "INNER disk is the same"
$b dd if=/dev/zero of=/dev/vda bs=64k seek=16 count=1 2>/dev/null && $b sync && echo "INNER writes after the move"
for mask in 1 2; do
	echo "INNER works on CPU $($b taskset $mask $b awk '{ print $39 }' /proc/self/stat)"
done

# With `quiet` the console is spared the kernel's warnings, but its log has them.
if $b dmesg | $b grep -E 'BUG:|Oops|Call Trace|cut here'; then
	echo "INNER log has complaints"
else
	echo "INNER log is clean"
fi
$b poweroff -f
