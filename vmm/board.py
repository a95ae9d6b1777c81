"""The board: the one place where the machine can be read off.

A PC of the year 1999 without ACPI, PCI and I/O APIC: two 8259A behind the processor's local APIC,
an 8254, a clock, a serial port, a keyboard controller, a watchdog, and a debug exit. Chips,
addresses and interrupt lines are below and nowhere else.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from rayvisor.vmm.clock import MachineClock
from rayvisor.vmm.core.library import host_tsc_hz, load_engine
from rayvisor.vmm.core.vcpu import Vcpu, VcpuTsc
from rayvisor.vmm.cpuid import cpuid_table
from rayvisor.vmm.devices import local_apic
from rayvisor.vmm.devices.debugexit import DebugExit
from rayvisor.vmm.devices.i8042 import I8042
from rayvisor.vmm.devices.i8254 import I8254
from rayvisor.vmm.devices.i8259 import PicPair
from rayvisor.vmm.devices.ib700 import Ib700
from rayvisor.vmm.devices.local_apic import LocalApic
from rayvisor.vmm.devices.mc146818 import Mc146818, memory_nvram
from rayvisor.vmm.devices.port61 import Port61
from rayvisor.vmm.devices.port80 import Port80
from rayvisor.vmm.devices.port92 import Port92
from rayvisor.vmm.devices.uart16550 import Uart16550
from rayvisor.vmm.devices.wiring import WiredOr
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.heartbeat import ConsoleHeartbeat
from rayvisor.vmm.machine import Machine
from rayvisor.vmm.memory import GuestRam, file_offset
from rayvisor.vmm.trim import IdleTrim

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import ByteSink, Device
    from rayvisor.vmm.spec import MachineSpec

IRQ_TIMER, IRQ_KEYBOARD, IRQ_COM1, IRQ_CLOCK = 0, 1, 4, 8
COM1 = 0x3F8
UART_LCR, UART_MCR = 3, 4


def build(spec: MachineSpec, console_sink: ByteSink) -> Machine:
    """A machine as `spec` wants it, switched off; its console's output goes to `console_sink`.

    Raises:
        ConfigError: the memory or the number of CPUs cannot be had.
        EngineError: Unicorn is missing or is not the build that the core knows.
    """
    if spec.cpus != 1:
        raise ConfigError(f"{spec.cpus} CPUs: this engine gives a VM exactly one vCPU")
    load_engine()
    ram = GuestRam(spec.memory_bytes)
    regions = [(gpa, count, file_offset(gpa)) for gpa, count in ram.ranges()]
    vcpu = Vcpu(ram.buffer, regions)
    vcpu.set_cpuid(cpuid_table(vcpu.engine_cpuid, host_tsc_hz()))
    clock = MachineClock()
    machine = Machine(spec, ram, vcpu, clock)
    if spec.direct:
        machine.start_direct(host_tsc_hz())
    low_bytes = sum(count for gpa, count in ram.usable() if gpa < 1 << 32)

    pic = _interrupts(machine)
    pit = I8254(clock, (pic.line(IRQ_TIMER), None, None))
    rtc = Mc146818(
        clock,
        pic.line(IRQ_CLOCK),
        utc_ns=time.time_ns(),
        nvram=memory_nvram(low_bytes, spec.memory_bytes - low_bytes),
    )
    heartbeat = ConsoleHeartbeat(clock, spec.heartbeat_s, machine.guest_hangs)
    machine.set_heartbeat = heartbeat.set_period
    uart = Uart16550(clock, pic.line(IRQ_COM1), _heard(console_sink, heartbeat))
    a20 = WiredOr(vcpu.set_a20)
    keyboard = I8042(pic.line(IRQ_KEYBOARD), a20=a20.input(high=True), reset=machine.guest_reset)
    port61 = Port61(clock, set_gate2=lambda level: pit.set_gate(2, level), out2=lambda: pit.out(2))
    port80 = Port80()
    port92 = Port92(a20=a20.input(), reset=machine.guest_reset)
    debug_exit = DebugExit(machine.debug_exit)
    watchdog = Ib700(clock, lambda: machine.guest_hangs("its watchdog expired"))

    def wire(first: int, count: int, name: str, device: Device, start: int = 0) -> None:
        machine.devices[name] = device
        if start == 0:
            vcpu.map_ports(first, count, device.read, device.write)
        else:
            vcpu.map_ports(
                first,
                count,
                lambda offset: device.read(offset + start),
                lambda offset, value: device.write(offset + start, value),
            )

    wire(0x20, 2, "pic0", pic.master)
    wire(0x4D0, 1, "pic0", pic.master, start=2)
    wire(0xA0, 2, "pic1", pic.slave)
    wire(0x4D1, 1, "pic1", pic.slave, start=2)
    wire(0x40, 4, "pit", pit)
    wire(0x60, 1, "keyboard", keyboard)
    wire(0x64, 1, "keyboard", keyboard, start=1)
    wire(0x61, 1, "port61", port61)
    wire(0x70, 2, "rtc", rtc)
    wire(0x80, 1, "port80", port80)
    wire(0x92, 1, "port92", port92)
    wire(0xF4, 1, "debug_exit", debug_exit)
    wire(0x443, 1, "watchdog", watchdog)
    wire(0x441, 1, "watchdog", watchdog, start=1)
    _wire_console(machine, uart)
    machine.on_start = _starters(IdleTrim(clock, vcpu), heartbeat)
    return machine


def _interrupts(machine: Machine) -> PicPair:
    """The processor's local APIC, and the 8259As behind it."""
    vcpu = machine.vcpu

    def inta() -> int:
        return pic.acknowledge()

    tsc = VcpuTsc(vcpu, host_tsc_hz())
    apic = LocalApic(
        machine.clock,
        tsc,
        vcpu.set_intr,
        nmi=vcpu.raise_nmi,
        inta=inta,
        lend=partial(vcpu.lend_tick, tsc_hz=tsc.hz),
        take_back=vcpu.take_tick_back,
    )
    pic = PicPair(apic.lint0)
    machine.devices["apic"] = apic
    vcpu.set_acknowledge(apic.acknowledge)
    vcpu.map_page(local_apic.BASE_GPA, apic.read, apic.write)
    vcpu.map_msr(local_apic.MSR_BASE, apic.read_base, apic.write_base)
    vcpu.map_msr(local_apic.MSR_TSC_DEADLINE, apic.read_deadline, apic.write_deadline)
    vcpu.map_priority(apic.read_cr8, apic.write_cr8)
    return pic


def _starters(*parts: IdleTrim | ConsoleHeartbeat) -> Callable[[], None]:
    def start() -> None:
        for part in parts:
            part.start()

    return start


def _heard(sink: ByteSink, heartbeat: ConsoleHeartbeat) -> ByteSink:
    beat = heartbeat.beat

    def hear(data: bytes) -> None:
        beat()
        sink(data)

    return hear


def _wire_console(machine: Machine, uart: Uart16550) -> None:
    """COM1, whose output bytes the core collects and hands over in bursts."""

    def follow() -> None:
        sink = uart.write_burst if uart.coalescing_allowed else None
        machine.vcpu.coalesce_port(COM1, sink)

    def write(offset: int, value: int) -> None:
        uart.write(offset, value)
        if offset in (UART_LCR, UART_MCR):
            follow()

    machine.devices["uart"] = uart
    machine.vcpu.map_ports(COM1, 8, uart.read, write)
    machine.feed_console = uart.feed
    machine.on_restore = follow
