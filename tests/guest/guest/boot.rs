//! From the PVH entry (32-bit, no paging, `ebx` = start info) to Rust in ring 3.
//!
//! Where KVM interprets ring 0, an instruction here costs microseconds, so tables are laid out by the assembler and
//! only a few dozen instructions run. Ring 3 does port I/O through a task state segment whose permission bitmap is
//! all zero: IOPL does not survive everywhere. Exceptions return to ring 3, into `trap`.
//!
//! A command line that begins with `exit=reset` resets at the first opportunity: what is measured then is the VMM.

use core::arch::global_asm;

global_asm!(
    r#"
.section .note.Xen,"a",@note
.align 4
.long 4, 4, 18
.ascii "Xen\0"
.long start32

.section .text.boot,"ax"
.code32
.globl start32
start32:
    cli
    mov 24(%ebx), %esi
    test %esi, %esi
    jz 1f
    cmpl $0x74697865, (%esi)        # "exit"
    jne 1f
    cmpl $0x7365723d, 4(%esi)       # "=res"
    jne 1f
    cmpw $0x7465, 8(%esi)           # "et"
    jne 1f
    mov $0xfe, %al
    out %al, $0x64
1:  mov %ebx, start_info
    mov $ring0_stack_top, %esp
    mov $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER: long mode
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000033, %eax           # paging, numeric error, monitor coprocessor, protected mode
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $start64

.code64
start64:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $ring0_stack_top, %rsp
    mov $tss, %eax
    movw %ax, gdt + 0x28 + 2
    shr $16, %eax
    movb %al, gdt + 0x28 + 4
    movb %ah, gdt + 0x28 + 7
    movq $ring0_stack_top, tss + 4
    movw $104, tss + 102            # the bitmap follows
    movb $0xff, tss + 104 + 8192
    mov $0x28, %ax
    ltr %ax
    lidt idt_pointer
    pushq $0x23
    pushq $ring3_stack_top - 8      # as after a call
    pushq $0x3002
    pushq $0x1b
    pushq $ring3_main
    iretq

# 32 exceptions, each 16 bytes apart.
.align 16
isr0:
.set vector, 0
.rept 32
.align 16
    pushq $vector
    jmp isr_common
.set vector, vector + 1
.endr
isr_common:
    cmp $0x64697063, %eax           # an invalid instruction with this in eax asks ring 0 for CPUID: where ring 3 runs
    jne 2f                          # natively, it would see the bare CPU. Leaf in edi, subleaf in esi
    cmpb $6, (%rsp)
    jne 2f
    add $8, %rsp
    addq $2, (%rsp)
    mov %edi, %eax
    mov %esi, %ecx
    cpuid
    iretq
2:  cmp $0x656c6774, %eax           # an invalid instruction with this in eax opens or closes ring 3 to interrupts;
    jne 1f                          # a software interrupt would do as well, but does not exist everywhere
    cmpb $6, (%rsp)
    jne 1f
    add $8, %rsp
    addq $2, (%rsp)
    xorq $0x200, 16(%rsp)
    iretq
1:                                  # vector, then error code or rip: trap(vector, word0, word1, cr2) in ring 3
    pop %rdi
    pop %rsi
    pop %rdx
    mov %cr2, %rcx
    pushq $0x23
    pushq $ring3_stack_top - 8      # as after a call
    pushq $0x3002
    pushq $0x1b
    pushq $trap
    iretq

# Interrupts of devices: counted, and ended at the local interrupt controller.
device_interrupt:
    incq interrupt_count
    push %rax
    mov $0xfee000b0, %eax
    movl $0, (%rax)
    pop %rax
spurious_interrupt:
    iretq

.section .data.boot,"aw"
.align 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
    .fill 508, 8, 0
pd:                                 # 4 GiB, identity, 2 MiB pages, user and writable; the last one uncached: registers
.set page, 0
.rept 1536
    .quad page * 0x200000 + 0x87
.set page, page + 1
.endr
.rept 512
    .quad page * 0x200000 + 0x9f
.set page, page + 1
.endr
idt:                                # interrupt gates
.set vector, 0
.rept 32
    .word isr0 - 0x200000 + vector * 16
    .word 0x08, 0x8e00, 0x20
    .quad 0
.set vector, vector + 1
.endr
    .word device_interrupt - 0x200000, 0x08, 0x8e00, 0x20
    .quad 0
    .fill 14, 16, 0
    .word spurious_interrupt - 0x200000, 0x08, 0x8e00, 0x20
    .quad 0
idt_pointer:
    .word 48 * 16 - 1
    .quad idt
.align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0 code
    .quad 0x00cf93000000ffff        # 0x10 ring 0 data
    .quad 0x00affb000000ffff        # 0x18 ring 3 code
    .quad 0x00cff3000000ffff        # 0x20 ring 3 data
    .quad 0x0000890000002068        # 0x28 task state, 8297 bytes; base set at start
    .quad 0
gdt_pointer:
    .word 55
    .long gdt
.globl start_info, idt, pml4, interrupt_count
.align 8
start_info:
    .quad 0
interrupt_count:
    .quad 0

.section .bss.boot,"aw",@nobits
.align 16
tss:
    .skip 104 + 8192 + 8
.align 16
    .skip 4096
ring0_stack_top:
    .skip 262144
ring3_stack_top:
.text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static start_info: u64;
    static pml4: u8;
    static interrupt_count: u64;
    static mut idt: [[u64; 2]; 32];
}

/// Physical address of the PVH start info.
pub fn start_info_address() -> u64 {
    // SAFETY: written once by the boot code before any Rust ran.
    unsafe { start_info }
}

/// Physical address of the topmost page table.
pub fn page_tables() -> u64 {
    (&raw const pml4) as u64
}

/// The interrupt that is counted.
pub const DEVICE_VECTOR: u32 = 32;
/// The one that means nothing.
pub const SPURIOUS_VECTOR: u32 = 47;

/// Interrupts counted so far.
pub fn interrupts() -> u64 {
    // SAFETY: a counter that an interrupt may change at any time; volatile for that reason.
    unsafe { (&raw const interrupt_count).read_volatile() }
}

/// Opens ring 3 to interrupts, or closes it again.
pub fn toggle_interrupts() {
    // SAFETY: the handler changes one flag of ours and goes on behind the instruction; handlers of interrupts leave
    // everything as they found it.
    unsafe { core::arch::asm!("ud2", in("eax") 0x656c_6774) }
}

/// What the guest was told of its CPU: eax, ebx, ecx, edx of a leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: the handler executes CPUID and goes on behind the instruction; rbx is put back, which the compiler keeps
    // for itself.
    unsafe {
        core::arch::asm!(
            "mov {ebx}, rbx",
            "ud2",
            "xchg {ebx}, rbx",
            ebx = out(reg) ebx,
            inout("eax") 0x6469_7063 => eax,
            out("ecx") ecx,
            out("edx") edx,
            in("edi") leaf,
            in("esi") subleaf,
        );
    }
    [eax, ebx as u32, ecx, edx]
}

/// Makes the CPU shut down: an exception when no table is left to handle it.
pub fn triple_fault() -> ! {
    // SAFETY: nothing refers to the table but the CPU, and nothing runs after this.
    unsafe {
        (&raw mut idt).write_volatile([[0; 2]; 32]);
        core::arch::asm!("ud2", options(noreturn))
    }
}
