// kvmwl: tiny KVM workload driver used to obtain real traces of the TDP MMU.
// Static program, no library but libc/pthread.  Runs inside a Linux guest that
// itself has kvm.ko + kvm-amd.ko (npt) loaded ("L1"); the VMs made here are "L2".
//
//   kvmwl WORKLOAD [key=value ...]
//
// stdout : "key=value" result lines (one record a line, first word = record kind)
// trace  : every step is bracketed by text markers in the ftrace buffer
//          (trace_marker): "MK begin <step> ..." / "MK end <step> rc=.. ns=.."
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <sched.h>
#include <linux/kvm.h>

#ifndef KVM_GET_STATS_FD
#define KVM_GET_STATS_FD _IO(KVMIO, 0xce)
#endif
#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7)
#endif
#define PG 4096ull
#define HP (2ull << 20)

typedef uint64_t u64;
typedef uint32_t u32;

static int kvm, tm_fd = -1;
static const char *wl;

static u64 now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void mk(const char *f, ...) {
    char b[300];
    va_list a;
    va_start(a, f);
    int n = vsnprintf(b, sizeof b, f, a);
    va_end(a);
    if (tm_fd >= 0) {
        ssize_t r = write(tm_fd, b, n);
        (void)r;
    }
}
static void out(const char *f, ...) {
    va_list a;
    va_start(a, f);
    printf("%s ", wl);
    vprintf(f, a);
    printf("\n");
    va_end(a);
    fflush(stdout);
}
static void die(const char *w) {
    out("FATAL what=\"%s\" errno=%d (%s)", w, errno, strerror(errno));
    exit(3);
}

/* ---- guest code: 32-bit protected mode, flat segments, paging off ---------- *
 * eax value  edx stride  ecx count  esi start  ebp rounds (-1 = for ever)
 * read adds every word read to eax.  Ends with OUT to port 0x10 (exit).        */
asm(".code32\n"
    "g_start:\n"
    "g_write: mov %esi,%edi\n mov %ecx,%ebx\n"
    "1: mov %eax,(%edi)\n add %edx,%edi\n dec %ebx\n jnz 1b\n"
    "   inc %eax\n cmp $-1,%ebp\n je g_write\n dec %ebp\n jnz g_write\n"
    "   out %al,$0x10\n jmp g_write\n"
    "g_read: mov %esi,%edi\n mov %ecx,%ebx\n"
    "1: add (%edi),%eax\n add %edx,%edi\n dec %ebx\n jnz 1b\n"
    "   cmp $-1,%ebp\n je g_read\n dec %ebp\n jnz g_read\n"
    "   out %al,$0x10\n jmp g_read\n"
    "g_exec: mov %esi,%edi\n mov %ecx,%ebx\n"
    "1: call *%edi\n add %edx,%edi\n dec %ebx\n jnz 1b\n"
    "   cmp $-1,%ebp\n je g_exec\n dec %ebp\n jnz g_exec\n"
    "   out %al,$0x10\n jmp g_exec\n"
    "g_two: mov %esi,%edi\n mov %ecx,%ebx\n" /* write range esi, then range esp+? see two= */
    "1: mov %eax,(%edi)\n add %edx,%edi\n dec %ebx\n jnz 1b\n"
    "   mov 0x3000,%edi\n mov 0x3004,%ebx\n" /* second range from the control page */
    "2: mov %eax,(%edi)\n add %edx,%edi\n dec %ebx\n jnz 2b\n"
    "   inc %eax\n cmp $-1,%ebp\n je g_two\n dec %ebp\n jnz g_two\n"
    "   out %al,$0x10\n jmp g_two\n"
    /* writes to each of a list of ranges {start,count}, ended by count 0, at esi */
    "g_many: mov %esi,%esp\n"
    "1: mov (%esp),%edi\n mov 4(%esp),%ecx\n test %ecx,%ecx\n jz 3f\n"
    "2: mov %eax,(%edi)\n add %edx,%edi\n dec %ecx\n jnz 2b\n add $8,%esp\n jmp 1b\n"
    "3: inc %eax\n cmp $-1,%ebp\n je g_many\n dec %ebp\n jnz g_many\n"
    "   out %al,$0x10\n jmp g_many\n"
    "g_end:\n.code64\n");
extern char g_start[], g_write[], g_read[], g_exec[], g_two[], g_many[], g_end[];
/* SMM handler placed at SMBASE(0x30000)+0x8000: one write in the SMM address space, then RSM */
asm(".code16\n s_start:\n mov %cs:0x100,%ax\n out %al,$0x11\n rsm\n s_end:\n.code64\n");
extern char s_start[], s_end[];
/* another handler: writes one word to each of [0x3010c] pages from [0x30108] on, in the SMM address
 * space */
asm(".code16\n s2_start: movl %cs:0x108,%edi\n movl %cs:0x10c,%ecx\n testl %ecx,%ecx\n jz 2f\n"
    "1: movl %eax,(%edi)\n addl $4096,%edi\n decl %ecx\n jnz 1b\n2: out %al,$0x11\n rsm\n s2_end:\n.code64\n");
extern char s2_start[], s2_end[];
#define CODE 0x1000ull
#define STK 0x9000ull

struct vm;
struct vcpu {
    int fd, id, sfd;
    volatile int done;
    struct kvm_run *run;
    pthread_t th;
    struct vm *vm;
    volatile int stop;
    u64 n_io, n_mmio, n_intr, n_fault, n_retry, n_other, n_runs;
    u32 smi_rounds, n_smi;
};
struct slot {
    u32 id, flags;
    u64 gpa, size;
    void *hva;
};
struct vm {
    int fd, sfd;
    struct vcpu v[8];
    int nv;
    int runsz;
    struct slot s[16];
};

static u64 argv_num(int c, char **v, const char *k, u64 d) {
    size_t n = strlen(k);
    for (int i = 2; i < c; i++)
        if (!strncmp(v[i], k, n) && v[i][n] == '=')
            return strtoull(v[i] + n + 1, 0, 0);
    return d;
}
static const char *argv_str(int c, char **v, const char *k, const char *d) {
    size_t n = strlen(k);
    for (int i = 2; i < c; i++)
        if (!strncmp(v[i], k, n) && v[i][n] == '=')
            return v[i] + n + 1;
    return d;
}

/* ---- KVM binary stats ------------------------------------------------------ */
struct st_h {
    u32 flags, name_size, num, id_off, desc_off, data_off;
};
struct st_d {
    u32 flags;
    int16_t exponent;
    uint16_t size;
    u32 offset, bucket_size;
};
/* f comes from KVM_GET_STATS_FD, taken when the VM / vCPU is made: the ioctl takes the vCPU mutex,
   which a running vCPU holds for as long as it stays in KVM_RUN, the read of the descriptor does
   not. */
static void stats_fd(int f, const char *tag, const char *who, int all) {
    if (f < 0) {
        out("STATS tag=%s who=%s unsupported errno=%d", tag, who, errno);
        return;
    }
    struct st_h h;
    if (pread(f, &h, sizeof h, 0) != sizeof h)
        return;
    printf("%s STATS tag=%s who=%s", wl, tag, who);
    size_t ds = sizeof(struct st_d) + h.name_size;
    char *b = malloc(ds * h.num);
    if (pread(f, b, ds * h.num, h.desc_off) < 0)
        die("stats desc");
    for (u32 i = 0; i < h.num; i++) {
        struct st_d *d = (void *)(b + i * ds);
        char *n = (char *)(d + 1);
        u64 val[64];
        int k = d->size > 64 ? 64 : d->size;
        if (pread(f, val, 8 * k, h.data_off + d->offset) < 0)
            continue;
        if (((d->flags & 0xf) == 3) || ((d->flags & 0xf) == 4))
            continue; /* histograms left out */
        int keep = all || strstr(n, "pages_") || strstr(n, "mmu_") || strstr(n, "tlb") ||
                   strstr(n, "lpage") || strstr(n, "pf_") || !strcmp(n, "exits") ||
                   strstr(n, "mmio_exits") || strstr(n, "max_mmu");
        if (keep)
            printf(" %s=%llu", n, (unsigned long long)val[0]);
    }
    printf("\n");
    fflush(stdout);
    free(b);
}
static void stats(struct vm *m, const char *tag) {
    mk("MK stats %s", tag);
    stats_fd(m->sfd, tag, "vm", 0);
    for (int i = 0; i < m->nv; i++) {
        char w[16];
        sprintf(w, "vcpu%d", i);
        stats_fd(m->v[i].sfd, tag, w, 0);
    }
}
static u64 stat1(struct vm *m, const char *name) {
    int f = m->sfd;
    if (f < 0)
        return -1;
    struct st_h h;
    u64 r = -1;
    if (pread(f, &h, sizeof h, 0) < 0) {
    }
    size_t ds = sizeof(struct st_d) + h.name_size;
    char *b = malloc(ds * h.num);
    if (pread(f, b, ds * h.num, h.desc_off) < 0) {
    }
    for (u32 i = 0; i < h.num; i++) {
        struct st_d *d = (void *)(b + i * ds);
        if (!strcmp((char *)(d + 1), name)) {
            if (pread(f, &r, 8, h.data_off + d->offset) < 0) {
            }
        }
    }
    free(b);
    return r;
}

/* ---- VM, slots ------------------------------------------------------------- */
static void vm_new(struct vm *m, int quirk) {
    memset(m, 0, sizeof *m);
    mk("MK begin create_vm");
    m->fd = ioctl(kvm, KVM_CREATE_VM, 0);
    if (m->fd < 0)
        die("CREATE_VM");
    m->sfd = ioctl(m->fd, KVM_GET_STATS_FD, 0);
    m->runsz = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    mk("MK end create_vm");
    if (!quirk) {
        struct kvm_enable_cap c = {.cap = KVM_CAP_DISABLE_QUIRKS2,
                                   .args = {KVM_X86_QUIRK_SLOT_ZAP_ALL}};
        int q = ioctl(m->fd, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);
        int r = ioctl(m->fd, KVM_ENABLE_CAP, &c);
        out("CONF slot_zap_all_quirk=off supported_mask=0x%x rc=%d errno=%d", q, r, r ? errno : 0);
    }
}
static void *mem(u64 size, int thp, int populate) {
    if (thp == 2 || thp == 3) {
        int fl = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | ((thp == 3 ? 30 : 21) << 26);
        void *p = mmap(0, size, PROT_READ | PROT_WRITE, fl | (populate ? MAP_POPULATE : 0), -1, 0);
        if (p == MAP_FAILED)
            die("mmap hugetlb");
        return p;
    }
    u64 al = thp ? HP : PG;
    u64 tot = size + HP * 2;
    char *p =
        mmap(0, tot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    char *q = (char *)(((u64)p + HP - 1) & ~(HP - 1));
    (void)al;
    madvise(q, size, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (populate)
        for (u64 i = 0; i < size; i += PG)
            *(volatile u32 *)(q + i) = 0x1000000u;
    return q;
}
static int setslot(struct vm *m, const char *what, u32 id, u32 flags, u64 gpa, u64 size, void *hva,
                   u64 *ns) {
    struct kvm_userspace_memory_region r = {.slot = id,
                                            .flags = flags,
                                            .guest_phys_addr = gpa,
                                            .memory_size = size,
                                            .userspace_addr = (u64)hva};
    mk("MK begin %s slot=%u flags=%x gfn=%llx npages=%llx", what, id, flags, gpa / PG, size / PG);
    u64 t = now();
    int rc = ioctl(m->fd, KVM_SET_USER_MEMORY_REGION, &r);
    u64 d = now() - t;
    int e = errno;
    mk("MK end %s slot=%u rc=%d ns=%llu", what, id, rc ? -e : 0, (unsigned long long)d);
    if (ns)
        *ns = d;
    if (rc)
        out("ERR %s slot=%u errno=%d (%s)", what, id, e, strerror(e));
    return rc;
}
static int add(struct vm *m, u32 id, u32 fl, u64 gpa, u64 size, void *h, u64 *ns) {
    return setslot(m, "slot_create", id, fl, gpa, size, h, ns);
}
static int del(struct vm *m, u32 id, u64 gpa, void *h, u64 *ns) {
    return setslot(m, "slot_delete", id, 0, gpa, 0, h, ns);
}
static int mov(struct vm *m, u32 id, u64 gpa, u64 size, void *h, u64 *ns) {
    return setslot(m, "slot_move", id, 0, gpa, size, h, ns);
}
static int flg(struct vm *m, u32 id, u32 fl, u64 gpa, u64 size, void *h, u64 *ns) {
    return setslot(m, fl ? "log_on" : "log_off", id, fl, gpa, size, h, ns);
}

static void *low_mem;
static void base_slot(struct vm *m) {
    char *p = mem(64 * PG, 0, 1);
    low_mem = p;
    memcpy(p + CODE, g_start, g_end - g_start);
    memcpy(p + 0x38000, s_start, s_end - s_start);
    add(m, 0, 0, 0, 64 * PG, p, 0);
}

static void seg(struct kvm_segment *s, int type, int sel) {
    memset(s, 0, sizeof *s);
    s->base = 0;
    s->limit = 0xffffffff;
    s->selector = sel;
    s->type = type;
    s->present = 1;
    s->db = 1;
    s->s = 1;
    s->g = 1;
}
static void vcpu_new(struct vm *m) {
    struct vcpu *v = &m->v[m->nv];
    v->vm = m;
    v->id = m->nv;
    mk("MK begin create_vcpu %d", v->id);
    v->fd = ioctl(m->fd, KVM_CREATE_VCPU, v->id);
    if (v->fd < 0)
        die("CREATE_VCPU");
    v->sfd = ioctl(v->fd, KVM_GET_STATS_FD, 0);
    m->nv++;
    mk("MK end create_vcpu %d", v->id);
    v->run = mmap(0, m->runsz, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (v->run == MAP_FAILED)
        die("mmap run");
    struct kvm_sregs s;
    if (ioctl(v->fd, KVM_GET_SREGS, &s))
        die("GET_SREGS");
    seg(&s.cs, 11, 8);
    seg(&s.ds, 3, 16);
    s.es = s.ds;
    s.fs = s.ds;
    s.gs = s.ds;
    s.ss = s.ds;
    s.cr0 |= 1;
    if (ioctl(v->fd, KVM_SET_SREGS, &s))
        die("SET_SREGS");
}

enum op { OP_W, OP_R, OP_X, OP_TWO, OP_MANY };
static void setup(struct vcpu *v, enum op o, u64 gpa, u32 count, u32 stride, u32 rounds, u32 val) {
    struct kvm_regs r = {0};
    char *e = o == OP_W     ? g_write
              : o == OP_R   ? g_read
              : o == OP_X   ? g_exec
              : o == OP_TWO ? g_two
                            : g_many;
    r.rip = CODE + (e - g_start);
    r.rsp = STK + 0x100 * (v->id + 1);
    r.rflags = 2;
    r.rsi = gpa;
    r.rcx = count;
    r.rdx = stride;
    r.rbp = rounds;
    r.rax = val;
    if (ioctl(v->fd, KVM_SET_REGS, &r))
        die("SET_REGS");
}
static int run_until(struct vcpu *v) /* 0 = finished with OUT 0x10, 1 = stopped, <0 = error */
{
    for (;;) {
        if (v->stop)
            return 1;
        v->n_runs++;
        int r = ioctl(v->fd, KVM_RUN, 0);
        if (r < 0) {
            if (errno == EINTR || errno == EAGAIN) {
                v->n_intr++;
                v->run->immediate_exit = 0;
                continue;
            }
            if (errno == EFAULT) {
                v->n_fault++;
                if (v->stop)
                    return 1;
                if (v->n_fault > 100000)
                    return -2;
                sched_yield();
                continue;
            }
            out("ERR KVM_RUN errno=%d (%s)", errno, strerror(errno));
            return -1;
        }
        switch (v->run->exit_reason) {
        case KVM_EXIT_IO:
            v->n_io++;
            if (v->run->io.port != 0x10)
                continue;
            if (!v->smi_rounds)
                return 0;
            {
                struct kvm_regs g;
                if (ioctl(v->fd, KVM_GET_REGS, &g))
                    die("GET_REGS");
                g.rbp = v->smi_rounds;
                if (ioctl(v->fd, KVM_SET_REGS, &g))
                    die("SET_REGS");
                if (!ioctl(v->fd, KVM_SMI))
                    v->n_smi++;
                usleep(500);
                continue;
            }
        case KVM_EXIT_MMIO:
            v->n_mmio++;
            if (!v->run->mmio.is_write)
                memset(v->run->mmio.data, 0, 8);
            continue;
        case KVM_EXIT_INTR:
            v->n_intr++;
            continue;
        case KVM_EXIT_INTERNAL_ERROR:
            out("ERR internal suberror=%d d0=%llx", v->run->internal.suberror,
                (unsigned long long)v->run->internal.data[0]);
        default:
            v->n_other++;
            {
                struct kvm_regs g;
                ioctl(v->fd, KVM_GET_REGS, &g);
                out("ERR exit_reason=%d rip=%llx rdi=%llx hw=%llx", v->run->exit_reason,
                    (unsigned long long)g.rip, (unsigned long long)g.rdi,
                    (unsigned long long)v->run->hw.hardware_exit_reason);
            }
            return -3;
        }
    }
}
static u32 touch(struct vcpu *v, const char *what, enum op o, u64 gpa, u32 count, u32 stride) {
    setup(v, o, gpa, count, stride, 1, 0x100);
    u64 f = v->n_mmio;
    mk("MK begin touch %s op=%d gfn=%llx count=%x", what, o, (unsigned long long)gpa / PG, count);
    u64 t = now();
    int r = run_until(v);
    u64 d = now() - t;
    struct kvm_regs g;
    ioctl(v->fd, KVM_GET_REGS, &g);
    mk("MK end touch %s rc=%d ns=%llu mmio=%llu", what, r, (unsigned long long)d,
       (unsigned long long)(v->n_mmio - f));
    out("TOUCH what=%s op=%d gpa=%llx count=%u rc=%d ns=%llu mmio=%llu eax=%llx", what, o,
        (unsigned long long)gpa, count, r, (unsigned long long)d,
        (unsigned long long)(v->n_mmio - f), (unsigned long long)g.rax);
    return g.rax;
}
static void *loop_th(void *a) {
    struct vcpu *v = a;
    int r = run_until(v);
    v->done = 1;
    if (r < 0)
        out("ERR vcpu%d loop rc=%d", v->id, r);
    return 0;
}
static void noop(int s) {
    (void)s;
}
static void start(struct vcpu *v) {
    v->stop = 0;
    v->done = 0;
    v->run->immediate_exit = 0;
    pthread_create(&v->th, 0, loop_th, v);
}
static void stop(struct vcpu *v) {
    v->stop = 1;
    v->run->immediate_exit = 1;
    while (!v->done) {
        pthread_kill(v->th, SIGUSR1);
        usleep(2000);
    }
    pthread_join(v->th, 0);
    v->run->immediate_exit = 0;
    v->stop = 0;
    out("VCPU id=%d runs=%llu io=%llu mmio=%llu intr=%llu efault=%llu other=%llu", v->id,
        (unsigned long long)v->n_runs, (unsigned long long)v->n_io, (unsigned long long)v->n_mmio,
        (unsigned long long)v->n_intr, (unsigned long long)v->n_fault,
        (unsigned long long)v->n_other);
}
static void vm_close(struct vm *m) {
    mk("MK begin vm_teardown");
    close(m->sfd);
    for (int i = 0; i < m->nv; i++) {
        close(m->v[i].sfd);
        munmap(m->v[i].run, m->runsz);
        mk("MK close_vcpu %d", i);
        close(m->v[i].fd);
    }
    mk("MK close_vm");
    u64 t = now();
    close(m->fd);
    u64 d = now() - t;
    mk("MK end vm_teardown ns=%llu", (unsigned long long)d);
    out("TEARDOWN close_vm_ns=%llu", (unsigned long long)d);
}
static void lat(const char *k, u64 *a, int n) {
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (a[j] < a[i]) {
                u64 t = a[i];
                a[i] = a[j];
                a[j] = t;
            }
    out("LAT what=%s n=%d min=%llu med=%llu p90=%llu max=%llu", k, n, (unsigned long long)a[0],
        (unsigned long long)a[n / 2], (unsigned long long)a[n * 9 / 10],
        (unsigned long long)a[n - 1]);
}

#define GA 0x40000000ull
#define GB 0x80000000ull
#define GC 0xa0000000ull
#define GD 0xb0000000ull

static void bare(struct vm *m, int nv, int quirk) {
    vm_new(m, quirk);
    base_slot(m);
    for (int i = 0; i < nv; i++)
        vcpu_new(m);
}

/* w1: 1 vCPU, slots A and B (32 pages each), delete B, touch A again, touch B (mmio), re-add B, ...
 */
static void w1(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), thp = argv_num(c, v, "thp", 0);
    u64 n = argv_num(c, v, "pages", 32), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG;
    u64 ns;
    u64 gb = argv_num(c, v, "adj", 0) ? GA + sz : GB;
    bare(&m, 1, q);
    struct vcpu *p = &m.v[0];
    void *a = mem(sz, thp, 1), *b = mem(sz, thp, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    add(&m, 2, 0, gb, sz, b, 0);
    stats(&m, "start");
    touch(p, "A", OP_W, GA, n, PG);
    touch(p, "B", OP_W, gb, n, PG);
    stats(&m, "mapped");
    touch(p, "A_again", OP_W, GA, n, PG);
    del(&m, 2, gb, b, &ns);
    out("OP delete=B ns=%llu", (unsigned long long)ns);
    stats(&m, "deleted_B");
    touch(p, "A_after_delete_B", OP_W, GA, n, PG);
    stats(&m, "A_refaulted");
    touch(p, "B_gone_mmio", OP_R, gb, 4, PG);
    touch(p, "B_gone_mmio2", OP_R, gb, 4, PG);
    stats(&m, "B_mmio");
    add(&m, 2, 0, gb, sz, b, &ns);
    out("OP create=B ns=%llu", (unsigned long long)ns);
    stats(&m, "readded_B");
    touch(p, "B_back", OP_R, gb, n, PG);
    stats(&m, "B_refaulted");
    del(&m, 1, GA, a, &ns);
    out("OP delete=A ns=%llu", (unsigned long long)ns);
    del(&m, 2, gb, b, &ns);
    out("OP delete=B_second ns=%llu", (unsigned long long)ns);
    stats(&m, "both_deleted");
    touch(p, "code_only", OP_R, 0x5000, 1, PG);
    stats(&m, "code_only");
    vm_close(&m);
}

/* w2: N vCPUs looping, memslot thread deletes / re-adds.  which=dummy: a slot nobody touches (as in
   memslot_modification_stress_test); which=touched: one of the two ranges the vCPUs write. */
static void w2(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 50), thp = argv_num(c, v, "thp", 0),
        delay = argv_num(c, v, "delay", 0);
    u64 n = argv_num(c, v, "pages", 32), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG;
    int dummy = !strcmp(argv_str(c, v, "which", "dummy"), "dummy");
    static u64 la[5000], lb[5000];
    bare(&m, nv, q);
    void *a = mem(sz, thp, 1), *b = mem(sz, thp, 1), *d = mem(16 * PG, 0, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    add(&m, 2, 0, GB, sz, b, 0);
    *(u32 *)((char *)low_mem + 0x3000) = GB;
    *(u32 *)((char *)low_mem + 0x3004) = n;
    stats(&m, "start");
    for (int i = 0; i < nv; i++) {
        setup(&m.v[i], OP_TWO, GA, n, PG, -1u, 0x100 * (i + 1));
        start(&m.v[i]);
    }
    usleep(200000);
    stats(&m, "warm");
    for (int i = 0; i < it; i++) {
        if (dummy) {
            add(&m, 3, 0, GC, 16 * PG, d, &la[i]);
            if (delay)
                usleep(delay);
            del(&m, 3, GC, d, &lb[i]);
        } else {
            del(&m, 2, GB, b, &lb[i]);
            if (delay)
                usleep(delay);
            add(&m, 2, 0, GB, sz, b, &la[i]);
        }
        if (delay)
            usleep(delay);
    }
    lat("create", la, it);
    lat("delete", lb, it);
    stats(&m, "after");
    usleep(100000);
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    stats(&m, "stopped");
    vm_close(&m);
}

/* w3: move slot B to another gfn; phase 1 one vCPU stopped, phase 2 with vCPUs running */
static void w3(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 10), thp = argv_num(c, v, "thp", 0);
    u64 n = argv_num(c, v, "pages", 32), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG, ns;
    static u64 la[5000];
    bare(&m, nv, q);
    struct vcpu *p = &m.v[0];
    void *a = mem(sz, thp, 1), *b = mem(sz, thp, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    add(&m, 2, 0, GB, sz, b, 0);
    touch(p, "A", OP_W, GA, n, PG);
    touch(p, "B", OP_W, GB, n, PG);
    stats(&m, "mapped");
    mov(&m, 2, GC, sz, b, &ns);
    out("OP move=B_to_C ns=%llu", (unsigned long long)ns);
    stats(&m, "moved");
    touch(p, "A_after_move", OP_R, GA, n, PG);
    touch(p, "C_after_move", OP_R, GC, n, PG);
    touch(p, "B_gone_mmio", OP_R, GB, 4, PG);
    stats(&m, "touched_new");
    mov(&m, 2, GC, sz, b, &ns);
    out("OP move=same_gfn_noop ns=%llu", (unsigned long long)ns);
    mov(&m, 2, GA, sz, b, &ns);
    out("OP move=overlap_expect_EEXIST ns=%llu", (unsigned long long)ns);
    mov(&m, 2, GB, sz, b, &ns);
    out("OP move=C_to_B ns=%llu", (unsigned long long)ns);
    stats(&m, "moved_back");
    *(u32 *)((char *)low_mem + 0x3000) = GB;
    *(u32 *)((char *)low_mem + 0x3004) = n;
    mk("MK phase2");
    for (int i = 0; i < nv; i++) {
        setup(&m.v[i], OP_TWO, GA, n, PG, -1u, 0x100 * (i + 1));
        start(&m.v[i]);
    }
    usleep(200000);
    for (int i = 0; i < it; i++) {
        mov(&m, 2, (i & 1) ? GB : GC, sz, b, &la[i]);
        usleep(20000);
    }
    lat("move", la, it);
    stats(&m, "after");
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    vm_close(&m);
}

/* w4: dirty logging.  manual=0 classic, 1 = MANUAL_PROTECT_ENABLE, 3 = + INITIALLY_SET */
static int pop(unsigned char *b, int n) {
    int k = 0;
    for (int i = 0; i < n; i++)
        k += __builtin_popcount(b[i]);
    return k;
}
static void w4(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 1),
        thp = argv_num(c, v, "thp", 0), man = argv_num(c, v, "manual", 0);
    u64 n = argv_num(c, v, "pages", 64), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG, ns;
    u64 np = sz / PG;
    u32 bytes = (np + 63) / 64 * 8;
    unsigned char *bm = calloc(1, bytes);
    bare(&m, nv, q);
    struct vcpu *p = &m.v[0];
    void *a = mem(sz, thp, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    if (man) {
        struct kvm_enable_cap e = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {man}};
        int r = ioctl(m.fd, KVM_ENABLE_CAP, &e);
        out("CONF manual_protect=%d rc=%d", man, r);
    }
    touch(p, "A_write", OP_W, GA, n, PG);
    stats(&m, "mapped");
    flg(&m, 1, KVM_MEM_LOG_DIRTY_PAGES, GA, sz, a, &ns);
    out("OP log_on ns=%llu", (unsigned long long)ns);
    stats(&m, "log_on");
    touch(p, "A_read", OP_R, GA, n, PG);
    stats(&m, "read");
    touch(p, "A_write_half", OP_W, GA, n / 2, PG);
    stats(&m, "wrote_half");
    for (int k = 0; k < 3; k++) {
        struct kvm_dirty_log l = {.slot = 1, .dirty_bitmap = bm};
        memset(bm, 0, bytes);
        mk("MK begin get_dirty_log");
        u64 t = now();
        int r = ioctl(m.fd, KVM_GET_DIRTY_LOG, &l);
        u64 d = now() - t;
        mk("MK end get_dirty_log rc=%d ns=%llu set=%d", r, (unsigned long long)d, pop(bm, bytes));
        out("OP get_dirty_log round=%d rc=%d ns=%llu set=%d", k, r, (unsigned long long)d,
            pop(bm, bytes));
        if (man) {
            struct kvm_clear_dirty_log cl = {
                .slot = 1, .num_pages = np, .first_page = 0, .dirty_bitmap = bm};
            mk("MK begin clear_dirty_log");
            t = now();
            r = ioctl(m.fd, KVM_CLEAR_DIRTY_LOG, &cl);
            d = now() - t;
            mk("MK end clear_dirty_log rc=%d ns=%llu", r, (unsigned long long)d);
            out("OP clear_dirty_log rc=%d ns=%llu", r, (unsigned long long)d);
        }
        touch(p, "A_write_8", OP_W, GA + (u64)k * 8 * PG, 8, PG);
    }
    stats(&m, "rounds");
    if (nv > 1) {
        mk("MK phase2");
        for (int i = 0; i < nv; i++) {
            setup(&m.v[i], OP_W, GA, n, PG, -1u, 0x100 * (i + 1));
            start(&m.v[i]);
        }
        usleep(100000);
        for (int k = 0; k < 5; k++) {
            struct kvm_dirty_log l = {.slot = 1, .dirty_bitmap = bm};
            mk("MK begin get_dirty_log");
            u64 t = now();
            int r = ioctl(m.fd, KVM_GET_DIRTY_LOG, &l);
            u64 d = now() - t;
            mk("MK end get_dirty_log rc=%d ns=%llu", r, (unsigned long long)d);
            out("OP get_dirty_log_conc round=%d rc=%d ns=%llu set=%d", k, r, (unsigned long long)d,
                pop(bm, bytes));
            usleep(20000);
        }
        for (int i = 0; i < nv; i++)
            stop(&m.v[i]);
        stats(&m, "conc");
    }
    flg(&m, 1, 0, GA, sz, a, &ns);
    out("OP log_off ns=%llu", (unsigned long long)ns);
    stats(&m, "log_off");
    touch(p, "A_write_all", OP_W, GA, n, PG);
    stats(&m, "end");
    flg(&m, 1, KVM_MEM_READONLY, GA, sz, a, &ns);
    out("OP flags_readonly ns=%llu",
        (unsigned long long)ns); /* expected EINVAL: RO cannot be toggled */
    vm_close(&m);
}

/* w5: latency of slot deletion against number of mapped leaves.  Run without tracing. */
static void w5(int c, char **v) {
    int q = argv_num(c, v, "quirk", 1), thp = argv_num(c, v, "thp", 0),
        reps = argv_num(c, v, "reps", 7), nv = argv_num(c, v, "vcpus", 1);
    u64 n = argv_num(c, v, "pages", 512), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG;
    u64 touchn = argv_num(c, v, "touch", n);
    int other = argv_num(c, v, "other", 0); /* delete an untouched dummy slot instead */
    int busy = argv_num(c, v, "busy", 0);   /* a second vCPU loops meanwhile */
    static u64 la[200], lb[200], lt[200];
    struct vm m;
    bare(&m, nv, q);
    struct vcpu *p = &m.v[0];
    void *a = mem(sz, thp, 1), *d = mem(16 * PG, 0, 1);
    if (busy) {
        setup(&m.v[nv - 1], OP_W, 0x20000, 4, PG, -1u, 1);
        start(&m.v[nv - 1]);
    }
    u64 p4 = 0, p2 = 0, p1 = 0;
    int nr = reps > 200 ? 200 : reps;
    for (int i = 0; i < nr; i++) {
        add(&m, 1, 0, GA, sz, a, &la[i]);
        if (other)
            add(&m, 3, 0, GC, 16 * PG, d, 0);
        setup(p, OP_W, GA, touchn, PG * (n / touchn), 1, 0x100);
        u64 t = now();
        run_until(p);
        lt[i] = now() - t;
        p4 = stat1(&m, "pages_4k");
        p2 = stat1(&m, "pages_2m");
        p1 = stat1(&m, "pages_1g");
        if (other) {
            del(&m, 3, GC, d, &lb[i]);
            u64 x;
            del(&m, 1, GA, a, &x);
        } else
            del(&m, 1, GA, a, &lb[i]);
    }
    out("SIZE pages=%llu touch=%llu thp=%d quirk=%d other=%d busy=%d leaves_4k=%llu leaves_2m=%llu leaves_1g=%llu after_4k=%llu",
        (unsigned long long)n, (unsigned long long)touchn, thp, q, other, busy,
        (unsigned long long)p4, (unsigned long long)p2, (unsigned long long)p1,
        (unsigned long long)stat1(&m, "pages_4k"));
    lat("create", la, nr);
    lat("touch", lt, nr);
    lat("delete", lb, nr);
    if (busy)
        stop(&m.v[nv - 1]);
    stats(&m, "end");
    vm_close(&m);
}

/* w6: teardown with live mappings.  how=close | exit (process dies with vm open) | kill (SIGKILL
 * while vCPUs run) */
static void w6(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        thp = argv_num(c, v, "thp", 0);
    u64 n = argv_num(c, v, "pages", 64), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG;
    const char *how = argv_str(c, v, "how", "close");
    if (!strcmp(how, "close")) {
        bare(&m, nv, q);
        void *a = mem(sz, thp, 1);
        add(&m, 1, 0, GA, sz, a, 0);
        for (int i = 0; i < nv; i++)
            touch(&m.v[i], "A", OP_W, GA, n, PG);
        stats(&m, "mapped");
        vm_close(&m);
        return;
    }
    pid_t k = fork();
    if (!k) {
        kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        bare(&m, nv, q);
        void *a = mem(sz, thp, 1);
        add(&m, 1, 0, GA, sz, a, 0);
        for (int i = 0; i < nv; i++)
            touch(&m.v[i], "A", OP_W, GA, n, PG);
        stats(&m, "mapped");
        if (!strcmp(how, "exit")) {
            mk("MK begin process_exit");
            _exit(0);
        }
        for (int i = 0; i < nv; i++) {
            setup(&m.v[i], OP_W, GA, n, PG, -1u, 0x100 * (i + 1));
            start(&m.v[i]);
        }
        usleep(200000);
        mk("MK begin process_kill");
        kill(getpid(), SIGKILL);
        pause();
    }
    int st;
    u64 t = now();
    waitpid(k, &st, 0);
    mk("MK end process_gone st=%x", st);
    out("CHILD status=%x wait_ns=%llu", st, (unsigned long long)(now() - t));
}

/* w7: mmu notifier traffic on the backing memory */
static void w7(int c, char **v) {
    struct vm m;
    int nv = argv_num(c, v, "vcpus", 2), it = argv_num(c, v, "iters", 10),
        thp = argv_num(c, v, "thp", 0), q = argv_num(c, v, "quirk", 1);
    u64 n = argv_num(c, v, "pages", 64), sz = thp ? (n * PG + HP - 1) / HP * HP : n * PG;
    int runv = argv_num(c, v, "running", 1);
    bare(&m, nv, q);
    struct vcpu *p = &m.v[0];
    char *a = mem(sz, thp, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    touch(p, "A", OP_W, GA, n, PG);
    stats(&m, "mapped");
#define NOT(name, expr)                                                                            \
    do {                                                                                           \
        mk("MK begin " name);                                                                      \
        u64 t_ = now();                                                                            \
        long r_ = (long)(expr);                                                                    \
        int e_ = r_ == -1 ? errno : 0;                                                             \
        u64 d_ = now() - t_;                                                                       \
        mk("MK end " name " rc=%d ns=%llu", e_, (unsigned long long)d_);                           \
        out("OP " name " errno=%d ns=%llu", e_, (unsigned long long)d_);                           \
    } while (0)
    /* deterministic part: vCPU stopped */
    NOT("dontneed_1", madvise(a + 5 * PG, PG, MADV_DONTNEED));
    stats(&m, "dontneed_1");
    touch(p, "A_r", OP_R, GA, n, PG);
    touch(p, "A_w", OP_W, GA, n, PG);
    NOT("dontneed_16", madvise(a + 16 * PG, 16 * PG, MADV_DONTNEED));
    stats(&m, "dontneed_16");
    touch(p, "A_w", OP_W, GA, n, PG);
    NOT("mprotect_ro_4", mprotect(a + 8 * PG, 4 * PG, PROT_READ));
    stats(&m, "mprotect_ro");
    touch(p, "A_r", OP_R, GA, n, PG);
    stats(&m, "read_ro");
    NOT("mprotect_rw_4", mprotect(a + 8 * PG, 4 * PG, PROT_READ | PROT_WRITE));
    touch(p, "A_w", OP_W, GA, n, PG);
    if (!thp) {
        NOT("unmap_remap_8", ({
                munmap(a + 40 * PG, 8 * PG);
                mmap(a + 40 * PG, 8 * PG, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED
                    ? -1
                    : 0;
            }));
        madvise(a + 40 * PG, 8 * PG, MADV_NOHUGEPAGE);
        stats(&m, "unmap_remap_8");
        touch(p, "A_w", OP_W, GA, n, PG);
    }
    NOT("fork_cow", ({
            pid_t k = fork();
            if (!k)
                _exit(0);
            int s;
            waitpid(k, &s, 0);
            0;
        }));
    stats(&m, "fork_cow");
    touch(p, "A_r", OP_R, GA, n, PG);
    touch(p, "A_w", OP_W, GA, n, PG);
    stats(&m, "after_cow");
    NOT("dontneed_unrelated", ({
            void *x = mem(16 * PG, 0, 1);
            madvise(x, 16 * PG, MADV_DONTNEED);
        }));
    stats(&m, "unrelated");
    NOT("dontneed_all", madvise(a, sz, MADV_DONTNEED));
    stats(&m, "dontneed_all");
    touch(p, "A_r", OP_R, GA, n, PG);
    touch(p, "A_w", OP_W, GA, n, PG);
    stats(&m, "refaulted");
    if (runv) {
        mk("MK phase2");
        for (int i = 0; i < nv; i++) {
            setup(&m.v[i], OP_W, GA, n, PG, -1u, 0x100 * (i + 1));
            start(&m.v[i]);
        }
        usleep(100000);
        for (int k = 0; k < it; k++) {
            NOT("conc_dontneed_1", madvise(a + (k % n) * PG, PG, MADV_DONTNEED));
            usleep(10000);
        }
        stats(&m, "conc1");
        for (int k = 0; k < it; k++) {
            NOT("conc_dontneed_all", madvise(a, sz, MADV_DONTNEED));
            usleep(10000);
        }
        stats(&m, "conc_all");
        for (int k = 0; k < 3; k++) {
            NOT("conc_mprotect_ro", mprotect(a, sz, PROT_READ));
            usleep(2000);
            NOT("conc_mprotect_rw", mprotect(a, sz, PROT_READ | PROT_WRITE));
            usleep(10000);
        }
        stats(&m, "conc_prot");
        if (!thp)
            for (int k = 0; k < 3; k++) {
                NOT("conc_munmap", munmap(a + 32 * PG, 16 * PG));
                usleep(3000);
                NOT("conc_mmap", mmap(a + 32 * PG, 16 * PG, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
                madvise(a + 32 * PG, 16 * PG, MADV_NOHUGEPAGE);
                usleep(10000);
            }
        stats(&m, "conc_unmap");
        for (int i = 0; i < nv; i++)
            stop(&m.v[i]);
    }
    stats(&m, "end");
    vm_close(&m);
}

/* w8: root reuse / root multiplicity.  a) second vCPU picks up the first one's root; b) MMU context
   reset (SET_SREGS that changes CR0.WP/CR4) drops and finds the root again; c) slot delete makes it
   obsolete; d) SMM entry gives a second root (role.smm=1, as_id 1). */
static void w8(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), smi = argv_num(c, v, "smi", 1);
    u64 n = argv_num(c, v, "pages", 8), sz = n * PG, ns;
    bare(&m, 2, q);
    void *a = mem(sz, 0, 1), *d = mem(16 * PG, 0, 1);
    add(&m, 1, 0, GA, sz, a, 0);
    struct vcpu *p = &m.v[0], *r = &m.v[1];
    touch(p, "v0_A", OP_W, GA, n, PG);
    mk("MK note second_vcpu_first_run");
    touch(r, "v1_A", OP_W, GA, n, PG);
    stats(&m, "shared");
    struct kvm_sregs s;
    ioctl(p->fd, KVM_GET_SREGS, &s);
    s.cr0 ^= 0x10000;
    mk("MK begin sregs_cr0_wp");
    ioctl(p->fd, KVM_SET_SREGS, &s);
    mk("MK end sregs_cr0_wp");
    touch(p, "v0_after_cr0wp", OP_R, GA, n, PG);
    s.cr4 ^= 0x20;
    mk("MK begin sregs_cr4_pae");
    ioctl(p->fd, KVM_SET_SREGS, &s);
    mk("MK end sregs_cr4_pae");
    touch(p, "v0_after_cr4", OP_R, GA, n, PG);
    stats(&m, "after_reset");
    add(&m, 3, 0, GC, 16 * PG, d, 0);
    del(&m, 3, GC, d, &ns);
    mk("MK note v0_runs_first_after_delete");
    touch(p, "v0_after_delete", OP_R, GA, n, PG);
    mk("MK note v1_runs_after_delete");
    touch(r, "v1_after_delete", OP_R, GA, n, PG);
    stats(&m, "after_delete");
    mk("MK note two_deletes_v1_not_run");
    add(&m, 3, 0, GC, 16 * PG, d, 0);
    del(&m, 3, GC, d, &ns);
    touch(p, "v0_mid", OP_R, GA, n, PG);
    add(&m, 3, 0, GC, 16 * PG, d, 0);
    del(&m, 3, GC, d, &ns);
    touch(p, "v0_late", OP_R, GA, n, PG);
    mk("MK note v1_runs_late");
    touch(r, "v1_late", OP_R, GA, n, PG);
    stats(&m, "late");
    if (smi) {
        setslot(&m, "slot_create_smm", 1 << 16, 0, 0, 64 * PG, low_mem, 0);
        setslot(&m, "slot_create_smm", (1 << 16) | 1, 0, GA, sz, a, 0);
        int e = ioctl(m.fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM);
        out("CONF x86_smm=%d", e);
        mk("MK begin smi");
        int rc = ioctl(p->fd, KVM_SMI);
        mk("MK end smi rc=%d", rc);
        touch(p, "v0_smi_then_A", OP_R, GA, n, PG);
        stats(&m, "after_smi");
        mk("MK note delete_with_two_roots");
        add(&m, 3, 0, GC, 16 * PG, d, 0);
        del(&m, 3, GC, d, &ns);
        stats(&m, "after_smi_delete");
        touch(p, "v0_end", OP_R, GA, n, PG);
        touch(r, "v1_end", OP_R, GA, n, PG);
    }
    vm_close(&m);
}

/* ---- w10..w14: several slots of ONE mmap
 * --------------------------------------------------------------------- * ranges(): what vCPU i
 * writes, as a list in its own part of page 3 */
static void ranges(int i, int k, u64 (*r)[2]) {
    u32 *t = (u32 *)((char *)low_mem + 0x3000 + 0x80 * i);
    for (int j = 0; j < k; j++) {
        t[2 * j] = r[j][0];
        t[2 * j + 1] = r[j][1];
    }
    t[2 * k] = t[2 * k + 1] = 0;
}
static void go(struct vcpu *v, u32 rounds, int k, u64 (*r)[2]) {
    ranges(v->id, k, r);
    setup(v, OP_MANY, 0x3000 + 0x80 * v->id, 0, PG, rounds, 0x100 * (v->id + 1));
    start(v);
}
static void touches(struct vcpu *v, const char *what, int k, u64 (*r)[2]) {
    for (int j = 0; j < k; j++) {
        char w[40];
        snprintf(w, sizeof w, "%s%d", what, j);
        touch(v, w, OP_W, r[j][0], r[j][1], PG);
    }
}
static u64 rnd_s = 1;
static u32 rnd(u32 n) {
    rnd_s = rnd_s * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(rnd_s >> 33) % n;
}
static u64 size_of(u64 n, int thp) {
    return thp ? (n * PG + HP - 1) / HP * HP : n * PG;
}

/* w10: slots 1,2,3 adjacent in guest and host, all of one mmap; slot 4 maps slot 2's memory a
   second time, at GC. Slot 2 (or 4, or in turn: which=) is deleted and made again while all vCPUs
   write all of it */
static void w10(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 10), thp = argv_num(c, v, "thp", 0),
        delay = argv_num(c, v, "delay", 3000);
    rnd_s = argv_num(c, v, "seed", 1);
    u64 n = argv_num(c, v, "pages", 8), sz = size_of(n, thp), ns;
    const char *which = argv_str(c, v, "which", "both");
    bare(&m, nv, q);
    char *a = mem(3 * sz, thp, 1);
    static u64 la[5000], lb[5000];
    for (int i = 0; i < 3; i++)
        add(&m, 1 + i, 0, GA + i * sz, sz, a + i * sz, 0);
    add(&m, 4, 0, GC, sz, a + sz, 0);
    u64 r[4][2] = {{GA, n}, {GA + sz, n}, {GA + 2 * sz, n}, {GC, n}};
    touches(&m.v[0], "s", 4, r);
    stats(&m, "mapped");
    del(&m, 2, GA + sz, a + sz, &ns);
    out("OP delete=slot2 ns=%llu", (unsigned long long)ns);
    stats(&m, "deleted2");
    touches(&m.v[nv - 1], "after_delete2_s", 4, r);
    stats(&m, "touched");
    add(&m, 2, 0, GA + sz, sz, a + sz, 0);
    del(&m, 4, GC, a + sz, &ns);
    out("OP delete=slot4 ns=%llu", (unsigned long long)ns);
    stats(&m, "deleted4");
    touches(&m.v[0], "after_delete4_s", 4, r);
    add(&m, 4, 0, GC, sz, a + sz, 0);
    stats(&m, "again");
    mk("MK phase2");
    for (int i = 0; i < nv; i++) {
        u64 x[4][2];
        for (int j = 0; j < 4; j++) {
            x[j][0] = r[(i + j) % 4][0];
            x[j][1] = r[(i + j) % 4][1];
        }
        go(&m.v[i], -1u, 4, x);
    }
    usleep(100000);
    for (int k = 0; k < it; k++) {
        int s = !strcmp(which, "2") ? 2 : !strcmp(which, "4") ? 4 : rnd(2) ? 2 : 4;
        u64 g = s == 2 ? GA + sz : GC;
        del(&m, s, g, a + sz, &lb[k]);
        usleep(rnd(delay + 1));
        add(&m, s, 0, g, sz, a + sz, &la[k]);
        usleep(rnd(delay + 1));
    }
    lat("create", la, it);
    lat("delete", lb, it);
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    stats(&m, "stopped");
    touches(&m.v[0], "end_s", 4, r);
    stats(&m, "end");
    vm_close(&m);
}

/* w11: dirty log switched on and off while the vCPUs write; manual=0|1|3; get (and clear) in
 * between */
static void w11(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 6), thp = argv_num(c, v, "thp", 0),
        man = argv_num(c, v, "manual", 0), gets = argv_num(c, v, "gets", 2),
        dl = argv_num(c, v, "delete", 0);
    rnd_s = argv_num(c, v, "seed", 1);
    u64 n = argv_num(c, v, "pages", 16), sz = size_of(n, thp), np = sz / PG, ns;
    u32 bytes = (np + 63) / 64 * 8;
    unsigned char *bm = calloc(1, bytes);
    bare(&m, nv, q);
    char *a = mem(2 * sz, thp, 1);
    if (man) {
        struct kvm_enable_cap e = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {man}};
        int x = ioctl(m.fd, KVM_ENABLE_CAP, &e);
        out("CONF manual_protect=%d rc=%d", man, x);
    }
    add(&m, 1, 0, GA, sz, a, 0);
    add(&m, 2, 0, GA + sz, sz, a + sz, 0);
    u64 r[2][2] = {{GA, n}, {GA + sz, n}};
    touches(&m.v[0], "s", 2, r);
    stats(&m, "mapped");
    mk("MK phase2");
    for (int i = 0; i < nv; i++)
        go(&m.v[i], -1u, 2, r);
    usleep(100000);
    for (int k = 0; k < it; k++) {
        int s = 1 + rnd(2);
        char *h = a + (s - 1) * sz;
        u64 g = GA + (s - 1) * sz;
        flg(&m, s, KVM_MEM_LOG_DIRTY_PAGES, g, sz, h, &ns);
        out("OP log_on slot=%d ns=%llu", s, (unsigned long long)ns);
        usleep(rnd(4000));
        for (int j = 0; j < gets; j++) {
            struct kvm_dirty_log l = {.slot = s, .dirty_bitmap = bm};
            memset(bm, 0, bytes);
            mk("MK begin get_dirty_log");
            int x = ioctl(m.fd, KVM_GET_DIRTY_LOG, &l);
            mk("MK end get_dirty_log rc=%d set=%d", x, pop(bm, bytes));
            out("OP get_dirty_log slot=%d rc=%d set=%d", s, x, pop(bm, bytes));
            if (man) {
                struct kvm_clear_dirty_log cl = {
                    .slot = s, .num_pages = np, .first_page = 0, .dirty_bitmap = bm};
                mk("MK begin clear_dirty_log");
                x = ioctl(m.fd, KVM_CLEAR_DIRTY_LOG, &cl);
                mk("MK end clear_dirty_log rc=%d", x);
                out("OP clear_dirty_log slot=%d rc=%d", s, x);
            }
            usleep(rnd(4000));
        }
        if (dl && (k & 1)) {
            del(&m, s, g, h, &ns);
            out("OP delete slot=%d ns=%llu", s, (unsigned long long)ns);
            usleep(rnd(2000));
            add(&m, s, 0, g, sz, h, 0);
        } else {
            flg(&m, s, 0, g, sz, h, &ns);
            out("OP log_off slot=%d ns=%llu", s, (unsigned long long)ns);
        }
        usleep(rnd(4000));
    }
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    stats(&m, "stopped");
    touches(&m.v[0], "end_s", 2, r);
    stats(&m, "end");
    vm_close(&m);
}

/* w12: mmu notifier over two slots of one VMA.  order=1: the second in the host is the first in the
   guest. par=1: another thread invalidates single pages of the first slot meanwhile. hollow=1: the
   second slot has page tables but no leaf (pages2 should be some 512s), only the first one is
   written: the walk over the second has nothing to flush of its own */
static volatile int par_stop;
static char *par_a;
static u64 par_n;
static u32 par_us;
static void *par_th(void *x) {
    (void)x;
    u64 k = 0;
    while (!par_stop) {
        mk("MK begin par_dontneed_1");
        madvise(par_a + (k++ % par_n) * PG, PG, MADV_DONTNEED);
        mk("MK end par_dontneed_1");
        if (par_us)
            usleep(par_us);
    }
    out("OP par_dontneed times=%llu", (unsigned long long)k);
    return 0;
}
static void w12(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 6), thp = argv_num(c, v, "thp", 0),
        order = argv_num(c, v, "order", 0), par = argv_num(c, v, "par", 0),
        wait = argv_num(c, v, "wait", 10000), hollow = argv_num(c, v, "hollow", 0),
        stopped = hollow ? 0 : argv_num(c, v, "stopped", 1);
    par_us = argv_num(c, v, "par_us", 0);
    u64 n = argv_num(c, v, "pages", 8), n2 = argv_num(c, v, "pages2", n), sz = size_of(n, thp),
        sz2 = size_of(n2, thp);
    bare(&m, nv, q);
    char *a = mem(sz + sz2, thp, 1);
    u64 g1 = order ? GA + sz2 : GA, g2 = order ? GA : GA + sz;
    add(&m, 1, 0, g1, sz, a, 0);
    add(&m, 2, 0, g2, sz2, a + sz, 0);
    u64 r[2][2] = {{g1, n}, {g2, n2}};
    int nr = hollow ? 1 : 2;
    touches(&m.v[0], "s", nr, r);
    u64 h = PG * (n2 / 2 ? n2 / 2 : 1);
    if (hollow) {
        touch(&m.v[0], "s1_sparse", OP_W, g2, n2 / 512 ? n2 / 512 : 1, HP);
        NOT("hollow_dontneed", madvise(a + sz, sz2, MADV_DONTNEED));
    }
    stats(&m, "mapped");
#define REMAP(p, s)                                                                                \
    do {                                                                                           \
        void *z_ =                                                                                 \
            mmap(p, s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);    \
        if (z_ == MAP_FAILED)                                                                      \
            die("mmap");                                                                           \
        madvise(p, s, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);                                      \
    } while (0)
    if (stopped) {
        NOT("two_dontneed_all", madvise(a, sz + sz2, MADV_DONTNEED));
        stats(&m, "dontneed");
        touches(&m.v[0], "r", 2, r);
        NOT("two_dontneed_edge", madvise(a + sz - PG, 2 * PG, MADV_DONTNEED));
        stats(&m, "edge");
        touches(&m.v[nv - 1], "e", 2, r);
        NOT("two_mprotect_ro", mprotect(a, sz + h, PROT_READ));
        NOT("two_mprotect_rw", mprotect(a, sz + h, PROT_READ | PROT_WRITE));
        touches(&m.v[0], "p", 2, r);
        NOT("two_munmap", munmap(a, sz + sz2));
        REMAP(a, sz + sz2);
        stats(&m, "munmap");
        touches(&m.v[0], "u", 2, r);
        stats(&m, "again");
    }
    mk("MK phase2");
    for (int i = 0; i < nv; i++)
        go(&m.v[i], -1u, nr, r);
    usleep(100000);
    pthread_t pt;
    if (par) {
        par_stop = 0;
        par_a = a;
        par_n = n;
        pthread_create(&pt, 0, par_th, 0);
    }
    for (int k = 0; k < it; k++) {
        NOT("conc_two_dontneed_all", madvise(a, sz + sz2, MADV_DONTNEED));
        usleep(wait);
        if (!par && !hollow) {
            NOT("conc_two_mprotect_ro", mprotect(a, sz + h, PROT_READ));
            usleep(500);
            NOT("conc_two_mprotect_rw", mprotect(a, sz + h, PROT_READ | PROT_WRITE));
            usleep(wait);
            NOT("conc_two_munmap", munmap(a, sz + sz2));
            usleep(500);
            REMAP(a, sz + sz2);
            usleep(wait);
        }
    }
    if (par) {
        par_stop = 1;
        pthread_join(pt, 0);
    }
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    stats(&m, "stopped");
    touches(&m.v[0], "end_s", nr, r);
    stats(&m, "end");
    vm_close(&m);
}

/* w13: vCPUs that write, and enter SMM every few rounds and write there too; a slot of either
   address space, or of both at one guest address, is deleted and made again meanwhile */
static void w13(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 8), rounds = argv_num(c, v, "rounds", 3),
        delay = argv_num(c, v, "delay", 5000);
    rnd_s = argv_num(c, v, "seed", 1);
    u64 n = argv_num(c, v, "pages", 4), sz = n * PG, ns;
    bare(&m, nv, q);
    char *a = mem(3 * sz, 0, 1);
    memcpy((char *)low_mem + 0x38000, s2_start, s2_end - s2_start);
    *(u32 *)((char *)low_mem + 0x30108) = GA;
    *(u32 *)((char *)low_mem + 0x3010c) = 3 * n;
    for (int i = 0; i < 3; i++)
        add(&m, 1 + i, 0, GA + i * sz, sz, a + i * sz, 0);
    setslot(&m, "slot_create_smm", 1 << 16, 0, 0, 64 * PG, low_mem, 0);
    for (int i = 0; i < 3; i++)
        setslot(&m, "slot_create_smm", (1 << 16) | (1 + i), 0, GA + i * sz, sz, a + i * sz, 0);
    u64 r[3][2] = {{GA, n}, {GA + sz, n}, {GA + 2 * sz, n}};
    touches(&m.v[0], "s", 3, r);
    mk("MK begin smi");
    int rc = ioctl(m.v[0].fd, KVM_SMI);
    mk("MK end smi rc=%d", rc);
    touches(&m.v[0], "smi", 3, r);
    stats(&m, "two_roots");
    del(&m, 2, GA + sz, a + sz, &ns);
    out("OP delete=slot2 ns=%llu", (unsigned long long)ns);
    touches(&m.v[0], "d", 3, r);
    mk("MK begin smi");
    rc = ioctl(m.v[0].fd, KVM_SMI);
    mk("MK end smi rc=%d", rc);
    touches(&m.v[0], "d_smi", 3, r);
    stats(&m, "deleted_as0");
    setslot(&m, "slot_delete_smm", (1 << 16) | 2, 0, GA + sz, 0, a + sz, &ns);
    out("OP delete=slot2_smm ns=%llu", (unsigned long long)ns);
    stats(&m, "deleted_both");
    mk("MK begin smi");
    rc = ioctl(m.v[0].fd, KVM_SMI);
    mk("MK end smi rc=%d", rc);
    touches(&m.v[0], "dd_smi", 3, r);
    add(&m, 2, 0, GA + sz, sz, a + sz, 0);
    setslot(&m, "slot_create_smm", (1 << 16) | 2, 0, GA + sz, sz, a + sz, 0);
    mk("MK phase2");
    for (int i = 0; i < nv; i++) {
        m.v[i].smi_rounds = rounds + i;
        go(&m.v[i], rounds + i, 3, r);
    }
    usleep(100000);
    for (int k = 0; k < it; k++) {
        int s = 1 + rnd(3), w = rnd(3);
        char *h = a + (s - 1) * sz;
        u64 g = GA + (s - 1) * sz;
        if (w != 1)
            del(&m, s, g, h, &ns);
        if (w)
            setslot(&m, "slot_delete_smm", (1 << 16) | s, 0, g, 0, h, 0);
        usleep(rnd(delay));
        if (w != 1)
            add(&m, s, 0, g, sz, h, 0);
        if (w)
            setslot(&m, "slot_create_smm", (1 << 16) | s, 0, g, sz, h, 0);
        usleep(rnd(delay));
    }
    for (int i = 0; i < nv; i++) {
        stop(&m.v[i]);
        out("SMI vcpu=%d times=%u", i, m.v[i].n_smi);
        m.v[i].smi_rounds = 0;
    }
    stats(&m, "end");
    vm_close(&m);
}

/* w14: slots of one mmap deleted, moved and made again by one thread, host memory invalidated by
 * others, vCPUs write all */
struct w14n {
    char *a;
    u64 bytes;
    volatile int stop;
    u64 seed, times;
    u32 us;
};
static void *w14_th(void *x) {
    struct w14n *t = x;
    u64 s = t->seed;
    while (!t->stop) {
        s = s * 6364136223846793005ull + 1442695040888963407ull;
        u32 y = s >> 33;
        u64 np = t->bytes / PG, o = y % np, l = 1 + (y >> 8) % (np - o);
        int k = (y >> 24) % 3;
        mk("MK begin notify %d %llx %llx", k, (unsigned long long)o, (unsigned long long)l);
        if (k < 2)
            madvise(t->a + o * PG, l * PG, MADV_DONTNEED);
        else {
            mprotect(t->a + o * PG, l * PG, PROT_READ);
            mprotect(t->a + o * PG, l * PG, PROT_READ | PROT_WRITE);
        }
        mk("MK end notify");
        t->times++;
        usleep(1 + (y % t->us));
    }
    return 0;
}
static void w14(int c, char **v) {
    struct vm m;
    int q = argv_num(c, v, "quirk", 1), nv = argv_num(c, v, "vcpus", 2),
        it = argv_num(c, v, "iters", 10), thp = argv_num(c, v, "thp", 0),
        nn = argv_num(c, v, "notifiers", 1), delay = argv_num(c, v, "delay", 3000),
        moves = argv_num(c, v, "move", 1);
    u64 seed = rnd_s = argv_num(c, v, "seed", 1);
    u64 n = argv_num(c, v, "pages", 8), sz = size_of(n, thp), ns;
    bare(&m, nv, q);
    char *a = mem(3 * sz, thp, 1);
    for (int i = 0; i < 3; i++)
        add(&m, 1 + i, 0, GA + i * sz, sz, a + i * sz, 0);
    u64 r[4][2] = {{GA, n}, {GA + sz, n}, {GA + 2 * sz, n}, {GC, n}};
    touches(&m.v[0], "s", 3, r);
    stats(&m, "mapped");
    for (int i = 0; i < nv; i++)
        go(&m.v[i], -1u, 4, r);
    usleep(50000);
    static struct w14n t[4];
    pthread_t th[4];
    if (nn > 4)
        nn = 4;
    for (int i = 0; i < nn; i++) {
        t[i] = (struct w14n){
            .a = a, .bytes = 3 * sz, .seed = seed * 77 + i, .us = argv_num(c, v, "us", 3000)};
        pthread_create(&th[i], 0, w14_th, &t[i]);
    }
    for (int k = 0; k < it; k++) {
        int w = rnd(3);
        if (w < 2 || !moves) {
            int s = 1 + rnd(3);
            char *h = a + (s - 1) * sz;
            u64 g = GA + (s - 1) * sz;
            del(&m, s, g, h, &ns);
            usleep(rnd(delay));
            add(&m, s, 0, g, sz, h, 0);
        } else {
            mov(&m, 3, GC, sz, a + 2 * sz, &ns);
            usleep(rnd(delay));
            mov(&m, 3, GA + 2 * sz, sz, a + 2 * sz, &ns);
        }
        usleep(rnd(delay));
    }
    for (int i = 0; i < nn; i++) {
        t[i].stop = 1;
        pthread_join(th[i], 0);
        out("NOTIFIER thread=%d times=%llu", i, (unsigned long long)t[i].times);
    }
    for (int i = 0; i < nv; i++)
        stop(&m.v[i]);
    stats(&m, "stopped");
    touches(&m.v[0], "end_s", 3, r);
    stats(&m, "end");
    vm_close(&m);
}

/* w9: exec / read / write permission faults and zero page */
static void w9(int c, char **v) {
    struct vm m;
    u64 n = 16, sz = n * PG;
    bare(&m, 1, 1);
    struct vcpu *p = &m.v[0];
    char *a = mem(sz, 0, 0);
    add(&m, 1, 0, GA, sz, a, 0);
    touch(p, "read_zero_page", OP_R, GA, 8, PG);
    stats(&m, "zero_read");
    touch(p, "write_zero_page", OP_W, GA, 8, PG);
    stats(&m, "zero_write");
    for (u64 i = 0; i < n; i++)
        *(unsigned char *)(a + i * PG) = 0xc3;
    touch(p, "exec", OP_X, GA, n, PG);
    stats(&m, "exec");
    char *ro = mem(sz, 0, 1);
    add(&m, 2, KVM_MEM_READONLY, GB, sz, ro, 0);
    touch(p, "ro_read", OP_R, GB, 4, PG);
    touch(p, "ro_write_mmio", OP_W, GB, 4, PG);
    stats(&m, "ro");
    (void)c;
    (void)v;
    vm_close(&m);
}

int main(int c, char **v) {
    if (c < 2) {
        fprintf(stderr, "usage: kvmwl w1..w14 [k=v]\n");
        return 2;
    }
    wl = v[1];
    setvbuf(stdout, 0, _IOLBF, 0);
    tm_fd = open("/sys/kernel/tracing/trace_marker", O_WRONLY | O_CLOEXEC);
    if (argv_num(c, v, "mark", 1) == 0)
        tm_fd = -1;
    struct sigaction sa = {.sa_handler = noop};
    sigaction(SIGUSR1, &sa, 0);
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        die("open /dev/kvm");
    printf("%s ARGS", wl);
    for (int i = 2; i < c; i++)
        printf(" %s", v[i]);
    printf("\n");
    mk("MK START %s", wl);
    static const struct {
        const char *n;
        void (*f)(int, char **);
    } t[] = {{"w1", w1},   {"w2", w2},   {"w3", w3},   {"w4", w4},  {"w5", w5},
             {"w6", w6},   {"w7", w7},   {"w8", w8},   {"w9", w9},  {"w10", w10},
             {"w11", w11}, {"w12", w12}, {"w13", w13}, {"w14", w14}};
    for (unsigned i = 0; i < sizeof t / sizeof *t; i++)
        if (!strcmp(t[i].n, wl)) {
            t[i].f(c, v);
            mk("MK STOP %s", wl);
            return 0;
        }
    fprintf(stderr, "unknown workload\n");
    return 2;
}
