#!/bin/busybox sh
# The first process of the emulated machine: makes it a KVM host, boots two guests on it, and ends.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmp /tmp
echo "OUTER up: Linux $($b uname -r)"
for module in irqbypass kvm kvm-amd; do
	$b insmod /modules/$module.ko
done
[ -c /dev/kvm ] && echo "OUTER has KVM"
$b dd if=/dev/urandom of=/tmp/disk bs=64k count=64 2>/dev/null
/bin/boot-once /vmlinuz --initrd /inner --memory 256 --vcpus 2 --disk /tmp/disk \
	--type-at "INNER waits for a line" --connect-at "listens on port 52" \
	--balloon 10000 --generation 00112233445566778899aabbccddeeff \
	--move-at "INNER ready to be moved" --press-at "INNER waits for the button" \
	--cmdline "console=ttyS0 reboot=t panic=-1 quiet"
echo "OUTER boot-once ended with $?"
echo "OUTER finds $($b dd if=/tmp/disk bs=64k count=16 2>/dev/null | $b sha256sum | $b head -c 64)"

# The demonstration's guest where KVM is hardware KVM: works, is moved, and goes on working.
/bin/boot-once /vmlinuz --initrd /worker --memory 256 --move-at "tick 2 " --kill-at "tick 6 " \
	--cmdline "console=ttyS0 reboot=t panic=-1 quiet fill_mib=4 ws_mib=1 rate=200"
echo "OUTER worker ended with $?"
$b poweroff -f
