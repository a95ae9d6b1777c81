"""The guest's own files: process 1 and what a shell reads."""

from __future__ import annotations

from typing import Final

INIT: Final = """\
#!/bin/sh
# Process 1 of a Rayvisor guest: mounts, a banner, one shell or one script, power off.
#
# Kernel arguments it knows:
#   rayvisor.exec=BASE64     run this shell script instead of the interactive shell
#   rayvisor.run=/PATH       run this file instead of the interactive shell
#   rayvisor.tty=COLSxROWS   size of the console; 80x24 without it
#   hostname=NAME            read by the kernel itself; "rayvisor" without it
#   TERM=NAME                handed down by the kernel; vt220 without it

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root USER=root LOGNAME=root SHELL=/bin/sh

mount -t devtmpfs -o nosuid,mode=755 devtmpfs /dev
mkdir -m 755 /dev/pts
mkdir -m 1777 /dev/shm
mount -t devpts -o nosuid,noexec,ptmxmode=666,mode=620,gid=5 devpts /dev/pts
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys

columns=80 rows=24 script='' program=''
read -r arguments < /proc/cmdline
set -f
for argument in $arguments; do
	value=${argument#*=}
	case $argument in
		rayvisor.exec=*) script=$value ;;
		rayvisor.run=*) program=$value ;;
		rayvisor.tty=*x*) columns=${value%x*} rows=${value#*x} ;;
	esac
done
set +f
stty cols "$columns" rows "$rows" 2> /dev/null || stty cols 80 rows 24

# The kernel says "linux" by itself, which means a screen that this console does not have.
[ "$TERM" = linux ] && TERM=vt220
export TERM
[ "$(uname -n)" = '(none)' ] && hostname rayvisor

echo "Rayvisor guest ready: Debian kernel $(uname -r)"
ip link set lo up

cd /root || exit
status=0
if [ -n "$script" ]; then
	echo "$script" | base64 -d > /run/exec
	setsid cttyhack sh /run/exec
	status=$?
elif [ -n "$program" ]; then
	setsid cttyhack "$program"
	status=$?
else
	setsid cttyhack sh -l
fi

sync
# Changing a mode waits until the UART has sent everything; a power off would cut the rest.
stty sane
# "System halted" belongs to no session.
echo 0 > /proc/sys/kernel/printk
[ "$status" -ne 0 ] && debug-exit "$status"
poweroff -f
"""
"""/init. Its first output is the banner; benchmarks and tests wait for that line."""

BANNER_PREFIX: Final = "Rayvisor guest ready: "
"""What the first line of the guest's user space begins with."""

PROFILE: Final = """\
PS1='\\h:\\w\\$ '
alias ll='ls -l'
alias poweroff='poweroff -f'
alias halt='halt -f'
alias reboot='reboot -f'
"""
"""/etc/profile of the login shell. Init is a script: it has no ears for a polite poweroff."""

USERS: Final = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUPS: Final = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
