# Turns a fresh Debian into the base image of sprites. Run by mmdebstrap outside of the new root, which is $1;
# PUCK_BUILD is the directory with what the build brings along and wants to know.
set -eu
root=$1

# The user of every sprite. The group first, since useradd would take the next free number.
chroot "$root" groupadd --gid 1001 sprite
chroot "$root" useradd --uid 1001 --gid 1001 --create-home --shell /bin/bash --comment 'Sprite' sprite
printf 'sprite ALL=(ALL:ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/sprite"
chmod 0440 "$root/etc/sudoers.d/sprite"

# Certificates that the host trusts too.
if [ -n "$(ls "$PUCK_BUILD/certificates")" ]; then
    cp "$PUCK_BUILD"/certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates --fresh >/dev/null
fi

# Without systemd nothing opens unprivileged ICMP, and without setcap Debian's package does not do it either.
chmod u+s "$root/usr/bin/ping"

cp "$PUCK_BUILD/pip.conf" "$root/etc/pip.conf"
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

# Names. A machine lays its own over these.
printf 'sprite\n' >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"

# The same mirrors as the host's, and no rule left that keeps parts of later packages away.
if [ -s "$PUCK_BUILD/debian.sources" ]; then
    rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
    cp "$PUCK_BUILD/debian.sources" "$root/etc/apt/sources.list.d/debian.sources"
fi
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"

# What the build wants to know: the mirror's time, which is the image's, and what is installed.
for date in "$root"/var/lib/apt/lists/*InRelease; do
    date --utc --date "$(sed -n 's/^Date: //p;/^Date: /q' "$date")" +%s
done | sort -n | tail -n 1 >"$PUCK_BUILD/epoch"
dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat '${Package} ${Version}\n' >"$PUCK_BUILD/packages"

# What differs between two builds, or is of no use to anyone.
find "$root/var/log" -type f -delete
rm -rf "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow- "$root"/etc/.pwd.lock \
    "$root"/var/lib/dpkg/*-old "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/* "$root"/var/cache/apt/* \
    "$root"/var/lib/apt/lists/* "$root"/tmp/* "$root"/var/tmp/*
