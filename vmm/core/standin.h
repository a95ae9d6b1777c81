/*
 * Stand-ins for a helper that may fault: the core looks first, and then jumps.
 *
 * Such a helper finds the guest's RIP by the address in translated code that it returns to, so nobody
 * may stand between the two.
 */
#ifndef RV_STANDIN_H
#define RV_STANDIN_H

/* `before` gets the helper's first three arguments and that address, and returns where to go. */
#define RV_JUMP_AFTER(name, before)                                                                \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl " #name "\n"                                                                   \
            ".hidden " #name "\n"                                                                  \
            ".type " #name ", @function\n" #name ":\n"                                             \
            "mov (%rsp), %rcx\n"                                                                   \
            "push %rdi\n"                                                                          \
            "push %rsi\n"                                                                          \
            "push %rdx\n"                                                                          \
            "call " #before "\n"                                                                   \
            "pop %rdx\n"                                                                           \
            "pop %rsi\n"                                                                           \
            "pop %rdi\n"                                                                           \
            "jmp *%rax\n"                                                                          \
            ".popsection\n")

#endif
