"""Looking into a guest that runs or died: disassembly, page walks, crash and exit reports.

Everything here takes a `CpuState` and a reader of guest RAM, and trusts neither: whatever a
guest left in its registers and tables gives a report, never an exception.
"""
