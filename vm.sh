#!/bin/sh
# Runs a command on another kernel: a small virtual machine, emulated in software, whose root is this
# machine's, read-only. What the command writes to /run, /var/lib/cni and /var/lib/causeway ends with it.
#
#   sh vm.sh 6.12|6.1 COMMAND [ARGUMENT...]
#
# Kernels are Debian's, fetched by apt into target/vm. Answers with the command's exit code.
set -eu

die() { echo "vm: $*" >&2; exit 2; }

[ $# -ge 2 ] || die "usage: sh vm.sh 6.12|6.1 COMMAND [ARGUMENT...]"
version=$1
shift
case $version in
    6.12) meta=linux-image-6.12-amd64 ;;
    6.1) meta=linux-image-amd64 ;;
    *) die "there are kernels 6.12 and 6.1, not $version" ;;
esac
top=$(cd "$(dirname "$0")" && pwd)
dir=$top/target/vm/$version
for tool in qemu-system-x86_64 busybox modprobe; do
    command -v "$tool" >/dev/null || die "$tool is missing (packages qemu-system-x86, busybox-static, kmod)"
done

# The kernel and its modules.
if [ ! -e "$dir/release" ]; then
    mkdir -p "$dir/deb"
    package=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ {print $2; exit}')
    [ -n "$package" ] || die "apt knows no $meta; run: apt-get update"
    (cd "$dir/deb" && apt-get download "$package" >/dev/null 2>&1) || die "cannot download $package"
    dpkg-deb -x "$dir"/deb/*.deb "$dir/system"
    release=$(ls "$dir/system/lib/modules")
    depmod -b "$dir/system" "$release"
    rm -rf "$dir/deb"
    echo "$release" >"$dir/release"
fi
release=$(cat "$dir/release")

# An initramfs that mounts this machine's root and goes there.
ram=$dir/initramfs
if [ ! -e "$ram.img" ]; then
    rm -rf "$ram"
    mkdir -p "$ram/bin" "$ram/mods" "$ram/proc" "$ram/sys" "$ram/dev" "$ram/root"
    cp "$(command -v busybox)" "$ram/bin/busybox"
    n=100
    for module in virtio_pci 9pnet_virtio 9p; do
        modprobe -d "$dir/system" -S "$release" --show-depends "$module" |
            awk '$1 == "insmod" {print $2}'
    done | awk '!seen[$0]++' | while read -r path; do
        n=$((n + 1))
        case $path in
            *.xz) xz -dc "$path" >"$ram/mods/$n.ko" ;;
            *.zst) zstd -qdc "$path" >"$ram/mods/$n.ko" ;;
            *) cp "$path" "$ram/mods/$n.ko" ;;
        esac
    done
    cat >"$ram/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for m in /mods/*.ko; do $b insmod "$m"; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose root /root || $b poweroff -f
r=/root
$b mount -t proc proc $r/proc
$b mount -t sysfs sys $r/sys
$b mount -t devtmpfs dev $r/dev
$b mkdir -p /dev/shm $r/dev/shm
$b mount -t tmpfs shm $r/dev/shm
for d in run var/lib/cni var/lib/causeway etc/cni; do
    [ -d "$r/$d" ] && $b mount -t tmpfs tmp "$r/$d"
done
$b sed 's/.* vm_script=//' /proc/cmdline >/script
script=$($b cat /script)
$b ip link set lo up
# How the kernel loads modules by itself.
printf '#!/bin/busybox sh\nexec /bin/busybox chroot /root /usr/sbin/modprobe -d %s "$@"\n' \
    "${script%/*}/system" >/load
$b chmod +x /load
echo /load >/proc/sys/kernel/modprobe
$b chroot $r /bin/sh "$script"
echo "vm: exit $?"
$b poweroff -f
INIT
    chmod +x "$ram/init"
    (cd "$ram" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$ram.img.new"
    mv "$ram.img.new" "$ram.img"
fi

# The command, quoted.
script=$dir/run-$$.sh
log=$dir/run-$$.log
trap 'rm -f "$script" "$log"' EXIT INT TERM
{
    echo "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run RUST_BACKTRACE=0"
    echo "cd '$top'"
    for module in ${VM_MODULES:-veth bridge br_netfilter 8021q vxlan ifb macvlan nf_tables nft_masq nft_nat \
        nft_ct nft_fib_inet nft_chain_nat nf_conntrack nf_conntrack_netlink sch_tbf sch_htb sch_ingress \
        act_mirred cls_u32 cls_matchall tun dummy}; do
        echo "modprobe -d '$dir/system' $module 2>/dev/null"
    done
    printf 'exec'
    for word in "$@"; do
        printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
    done
    echo
} >"$script"
timeout "${VM_SECONDS:-540}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 \
    -net none -nographic -no-reboot -kernel "$dir/system/boot/vmlinuz-$release" -initrd "$ram.img" \
    -fsdev local,id=r,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=r,mount_tag=root \
    -append "console=ttyS0 quiet panic=-1 vm_script=$script" </dev/null | tr -d '\r' | tee "$log" |
    sed '/^vm: exit /d'
code=$(sed -n 's/^vm: exit //p' "$log" | tail -n 1)
[ -n "$code" ] || die "the machine ended before the command did"
exit "$code"
