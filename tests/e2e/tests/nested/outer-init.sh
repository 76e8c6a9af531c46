#!/bin/busybox sh
# The first process of the emulated machine: makes it a KVM host, boots one guest on it, and ends it.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmp /tmp
echo "OUTER up: Linux $($b uname -r)"
for module in irqbypass kvm kvm-amd; do
	$b insmod /modules/$module.ko
done
[ -c /dev/kvm ] && echo "OUTER has KVM"
/bin/boot-once /vmlinuz --initrd /inner --memory 256 --vcpus 2 \
	--move-at "INNER ready to be moved" --press-at "INNER waits for the button" \
	--cmdline "console=ttyS0 reboot=t panic=-1 quiet"
echo "OUTER boot-once ended with $?"
$b poweroff -f
