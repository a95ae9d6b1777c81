/* A 32-bit program without a C library: what 32-bit user code can see of its processor.
 *
 * Prints plain lines, the same on every x86-64 and every Linux with 32-bit emulation. */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

enum { EXIT = 1, FORK = 2, WRITE = 4, WAITPID = 7, GETPID = 20, KILL = 37, SIGACTION = 174, SIGALTSTACK = 186, SET_THREAD_AREA = 243 };
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGUSR1 = 10, SIGSEGV = 11 };
enum { SA_SIGINFO = 4, SA_NODEFER = 0x40000000, SA_ONSTACK = 0x08000000, SA_RESTORER = 0x04000000, AT_SYSINFO = 32 };

struct context {
    u32 flags, link, stack[3];
    u32 gs, fs, es, ds, edi, esi, ebp, esp, ebx, edx, ecx, eax, trap, error, eip, cs, eflags;
};
struct info {
    int signal, error, code;
    u32 address;
};

static u32 kernel_entry;
static volatile struct info caught;
static volatile u32 caught_trap, caught_error, caught_eip, back_eip, back_esp, back_ebp, handled;

static u32 call(u32 number, u32 a, u32 b, u32 c) {
    u32 result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

/* The same through the vdso: SYSENTER or SYSCALL, as the processor has it. */
static u32 fast_call(u32 number, u32 a, u32 b, u32 c) {
    u32 result;
    __asm__ volatile("call *%1" : "=a"(result) : "m"(kernel_entry), "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void put(const char *text) {
    u32 count = 0;
    while (text[count])
        count++;
    call(WRITE, 1, (u32)text, count);
}

static void put_hex(u32 value) {
    char text[12];
    u32 at = sizeof text;
    text[--at] = 0;
    do
        text[--at] = "0123456789abcdef"[value & 15];
    while (value >>= 4);
    put(text + at);
}

static void line(const char *name, u32 value) {
    put(name);
    put(" ");
    put_hex(value);
    put("\n");
}

static void note(int number, struct info *info, struct context *context) {
    caught.signal = number;
    caught.code = info->code;
    caught.address = info->address;
    caught_trap = context->trap;
    caught_error = context->error;
    caught_eip = context->eip;
    handled++;
    if (number == SIGUSR1)
        return;
    context->eip = back_eip;
    context->esp = back_esp;
    context->ebp = back_ebp;
    context->eflags &= ~0x100u;
}

void restorer(void);
__asm__(".text\nrestorer:\n    mov $173, %eax\n    int $0x80\n");

/* rt_sigaction wants the size of the mask in ESI. */
static void take_signal(int number, int flags, void *restore) {
    struct {
        void *handler;
        u32 flags;
        void *restorer;
        u32 mask[2];
    } action = {(void *)note, SA_SIGINFO | (u32)flags, restore, {0, 0}};
    u32 result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(SIGACTION), "b"(number), "c"(&action), "d"(0), "S"(8) : "memory");
    if (result)
        put("no sigaction\n");
}

/* Runs instructions; a fault in them goes on behind them. */
#define TRY(text, ...)                                                                             \
    do {                                                                                           \
        caught.signal = 0;                                                                         \
        __asm__ volatile("movl $2f, back_eip\n\tmov %%esp, back_esp\n\tmov %%ebp, back_ebp\n\t"    \
                         "1: " text "\n\t2:"                                                       \
                         :                                                                         \
                         : __VA_ARGS__                                                             \
                         : "eax", "ecx", "edx", "ebx", "esi", "edi", "cc", "memory");              \
    } while (0)

static void say(const char *name) {
    put(name);
    put(": ");
    put_hex((u32)caught.signal);
    if (caught.signal) {
        put(" code ");
        put_hex((u32)caught.code & 0xFFFF);
        put(" trap ");
        put_hex(caught_trap);
        put(" error ");
        put_hex(caught_error);
        put(" at ");
        put_hex(caught.signal == SIGSEGV && caught_trap == 14 ? caught.address : 0);
    }
    put("\n");
}

#define FAULT(name, text, ...)                                                                     \
    TRY(text, __VA_ARGS__);                                                                        \
    say(name)

static void faults(void) {
    FAULT("null", "movl 8, %%eax", );
    FAULT("store", "movl %%eax, 0x1000", );
    FAULT("the kernel's half", "movl 0xFFFFE004, %%eax", );
    FAULT("the last bytes", "movl 0xFFFFFFFC, %%eax", );
    FAULT("jump to 5", "mov $5, %%eax\n\tjmp *%%eax", );
    FAULT("call to the top", "mov $0xFFFFFFF0, %%eax\n\tcall *%%eax", );
    FAULT("ret to 0x1000", "push $0x1000\n\tret", );
    FAULT("no stack", "mov $0x1000, %%esp\n\tpush %%eax", );
    FAULT("division", "xor %%ecx, %%ecx\n\tmov $1, %%eax\n\tcltd\n\tdivl %%ecx", );
    FAULT("aam 0", "aam $0", );
    FAULT("into", "mov $0x7FFFFFFF, %%eax\n\tinc %%eax\n\tinto", );
    FAULT("into, no overflow", "xor %%eax, %%eax\n\tinto", );
    static const int bounds[2] = {3, 7};
    FAULT("bound", "mov $8, %%eax\n\tbound %%eax, %0", "m"(bounds));
    FAULT("bound, inside", "mov $7, %%eax\n\tbound %%eax, %0", "m"(bounds));
    FAULT("int3", "int3", );
    FAULT("int 3", ".byte 0xCD, 3", );
    FAULT("int 4", "int $4", );
    FAULT("int 0x40", "int $0x40", );
    FAULT("ud2", "ud2", );
    FAULT("hlt", "hlt", );
    FAULT("cli", "cli", );
    FAULT("in", "in $0x60, %%al", );
    FAULT("mov cr0", "mov %%cr0, %%eax", );
    FAULT("sysexit", "sysexit", );
    FAULT("lret to 0x10", "push $0x10\n\tpush $2f\n\tlret", );
    FAULT("iret to 0x10", "pushf\n\tpush $0x10\n\tpush $2f\n\tiret", );
    FAULT("ljmp to null", "ljmp $0, $0x1000", );
    FAULT("ds", "mov $0x53, %%eax\n\tmov %%eax, %%ds", );
    FAULT("es, kernel's", "mov $0x18, %%eax\n\tmov %%eax, %%es", );
    FAULT("step", "pushf\n\torl $0x100, (%%esp)\n\tpopf\n\tnop\n\tnop", );
    FAULT("step over int 0x80", "mov $20, %%eax\n\tpushf\n\torl $0x100, (%%esp)\n\tpopf\n\tint $0x80\n\tnop", );
}

static void calls(u32 *stack) {
    u32 *at = stack + 1 + stack[0] + 1, esi = 0x11111111, edi = 0x22222222, pid = call(GETPID, 0, 0, 0), wrong = 0;
    while (*at++)
        ;
    for (; *at; at += 2)
        if (*at == AT_SYSINFO)
            kernel_entry = at[1];
    line("a fast entry", kernel_entry != 0);
    if (!kernel_entry)
        return;
    for (u32 i = 0; i < 2000; i++) {
        u32 result;
        __asm__ volatile("push %%ebp\n\tmov $0x33333333, %%ebp\n\tcall *%2\n\tcmp $0x33333333, %%ebp\n\tje 1f\n\t"
                         "xor %%eax, %%eax\n\t1: pop %%ebp"
                         : "=a"(result), "+S"(esi)
                         : "m"(kernel_entry), "a"(GETPID), "D"(edi)
                         : "ecx", "edx", "cc", "memory");
        wrong += result != pid;
    }
    line("calls by the fast entry, wrong", wrong);
    line("no such call", fast_call(0xFFFF, 1, 2, 3));
    line("no such call, int 0x80", call(0xFFFF, 1, 2, 3));
    line("x32 number", call(0x40000000 | GETPID, 0, 0, 0));
}

/* A segment for thread-local data, with a limit; translators need not check limits. */
static void thread_area(int exact) {
    static u32 data[8] = {0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7};
    struct {
        u32 entry, base, limit, bits;
    } area = {0xFFFFFFFF, (u32)data, 23, 0x41}; /* 32 bits, useable, limit in bytes */
    line("set_thread_area", call(SET_THREAD_AREA, (u32)&area, 0, 0));
    u32 selector = area.entry << 3 | 3, value;
    __asm__ volatile("mov %1, %%gs\n\tmovl %%gs:8, %0" : "=&r"(value) : "r"(selector));
    line("gs:8", value);
    FAULT("gs:20", "movl %%gs:20, %%eax", );
    if (exact) {
        FAULT("gs:24", "movl %%gs:24, %%eax", );
        FAULT("gs:-4", "movl %%gs:-4, %%eax", );
        FAULT("null selector", "xor %%eax, %%eax\n\tmov %%eax, %%es\n\tmovl %%es:(%%esp), %%ecx", );
        __asm__ volatile("mov %0, %%es" : : "r"(0x2B));
    }
    u32 pid = call(FORK, 0, 0, 0), status = 0;
    if (pid == 0) {
        __asm__ volatile("movl %%gs:12, %0" : "=r"(value));
        call(EXIT, value, 0, 0);
    }
    call(WAITPID, pid, (u32)&status, 0);
    line("child", status);
    area.base = (u32)(data + 1);
    call(SET_THREAD_AREA, (u32)&area, 0, 0);
    __asm__ volatile("mov %1, %%gs\n\tmovl %%gs:8, %0" : "=&r"(value) : "r"(selector));
    line("moved", value);
    __asm__ volatile("mov %0, %%gs" : : "r"(0));
}

static void computes(void) {
    u32 sum = 0;
    for (u32 i = 0; i < 3000; i++) {
        u32 a = i * 2654435761u, b = a ^ i;
        __asm__ volatile("add %%bl, %%al\n\tdaa\n\tadd %%eax, %2\n\tadd $0x11, %%al\n\taaa\n\tadd %%eax, %2\n\t"
                         "aam\n\txor %%eax, %2\n\taad\n\trol $5, %2\n\tpusha\n\tpopa\n\tpush %%cs\n\tpop %%eax\n\t"
                         "movzwl %%ax, %%eax\n\tadd %%eax, %2\n\tpush %%ds\n\tpop %%ds"
                         : "+a"(a), "+b"(b), "+r"(sum) : : "cc");
    }
    line("decimal", sum);
    double x = 1;
    for (int i = 1; i < 100; i++)
        x = x * i / (i + 0.5) + 1.0 / i;
    u64 bits;
    __builtin_memcpy(&bits, &x, 8);
    line("x87", (u32)(bits >> 20));
    u32 cs, ds, ss, flags;
    __asm__ volatile("mov %%cs, %0\n\tmov %%ds, %1\n\tmov %%ss, %2\n\tpushf\n\tpop %3" : "=r"(cs), "=r"(ds), "=r"(ss), "=r"(flags));
    line("cs", cs);
    line("ds", ds);
    line("ss", ss);
    line("flags", flags & 0x37700);
    /* Into 64-bit code and back. */
    u64 wide = 0;
    __asm__ volatile("lcall $0x33, $1f\n\tjmp 2f\n\t.code64\n\t1: mov $0x123456789, %%rcx\n\timul %%rcx, %%rcx\n\t"
                     "mov %%rcx, (%%rax)\n\tlretl\n\t.code32\n\t2:"
                     : : "a"(&wide) : "ecx", "cc", "memory");
    line("64-bit code, low", (u32)wide);
    line("64-bit code, high", (u32)(wide >> 32));
}

__attribute__((used)) _Noreturn static void run(u32 *stack) {
    static u8 stack_memory[16384];
    struct {
        u8 *start;
        u32 flags, bytes;
    } alternate = {stack_memory, 0, sizeof stack_memory};
    call(SIGALTSTACK, (u32)&alternate, 0, 0);
    static const int signals[] = {SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV};
    for (u32 i = 0; i < 5; i++)
        take_signal(signals[i], SA_RESTORER | SA_NODEFER | SA_ONSTACK, restorer);
    calls(stack);
    faults();
    thread_area(stack[0] > 1);
    computes();
    /* A handler that returns through the vdso's own code. */
    take_signal(SIGUSR1, 0, 0);
    handled = 0;
    for (u32 i = 0; i < 50; i++)
        call(KILL, call(GETPID, 0, 0, 0), SIGUSR1, 0);
    line("handled", handled);
    put("32-bit done\n");
    for (;;)
        call(EXIT, 0, 0, 0);
}

__asm__(".text\n.globl _start\n_start:\n    mov %esp, %eax\n    and $-16, %esp\n    sub $12, %esp\n    push %eax\n    call run\n");
