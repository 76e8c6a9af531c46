#!/bin/busybox sh
# The first process of the guest: says what it finds, is moved meanwhile, waits for the power button, and powers off.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b insmod /button.ko
echo "INNER up: $($b nproc) CPUs, Linux $($b uname -r)"

$b dd if=/dev/urandom of=/data bs=64k count=16 2>/dev/null
sum=$($b sha256sum </data)
read -r before rest </proc/uptime
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
