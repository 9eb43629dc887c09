// A GPU's thread blocks on a host. Each thread has a stack, and threads take turns: one goes on from where it waits when all
// others of its warp, or of its thread block, wait there, too.
#undef _FORTIFY_SOURCE  // whose longjmp refuses to go to another stack
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct Index {
    unsigned x;
};
static Index blockIdx, threadIdx, blockDim, gridDim;  // of the thread whose turn it is

namespace host {

constexpr unsigned OF_WARP = 32, MOST_THREADS = 1024;  // the latter of a thread block
constexpr int UNWRITTEN = 0xa5;                        // each byte that a GPU leaves undefined
constexpr unsigned CANARY = 0xa5a5a5a5u;

[[noreturn]] static void refuse(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    abort();
}

// A kernel, whose arguments are pointers and numbers of 64 bits. It is handed more than it takes, which it never sees, as they
// are where a caller puts and removes them.
typedef unsigned long long Word;
constexpr unsigned MOST_WORDS = 24;
typedef void (*Kernel)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                       Word, Word, Word, Word, Word, Word, Word);
static Kernel kernel;
static Word words[MOST_WORDS];
static void call_kernel() {
    const Word* const w = words;
    kernel(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17],
           w[18], w[19], w[20], w[21], w[22], w[23]);
}

enum Reason { FOR_WARP, FOR_THREAD_BLOCK, FOR_THE_NEXT };  // the last: its work on a thread block is done
struct Wait {
    Reason reason;
    const void* at;  // in the kernel, where lanes exchange values
};

struct Thread {
    jmp_buf at;
    Wait wait;
    unsigned sends;   // values to other lanes so far
    unsigned canary;  // beside the end of the stack
    alignas(16) char stack[1 << 18];
};
static Thread* threads;
static jmp_buf scheduler;

static Thread& turn() { return threads[threadIdx.x]; }

__attribute__((noinline)) static void go(jmp_buf from, jmp_buf to) {
    if (!_setjmp(from)) _longjmp(to, 1);
}
static void wait(Reason reason, const void* at = nullptr) {
    const unsigned own = threadIdx.x;
    turn().wait = {reason, at};
    go(turn().at, scheduler);
    threadIdx.x = own;
}

static void live() {
    for (;;) {
        wait(FOR_THE_NEXT);
        call_kernel();
    }
}
static void begin(unsigned thread) {
    Thread& own = threads[thread];
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = own.stack, context.uc_stack.ss_size = sizeof own.stack;
    makecontext(&context, live, 0);
    own.sends = 0, own.canary = CANARY, threadIdx.x = thread;
    if (!_setjmp(scheduler)) setcontext(&context);
}

static Reason agreed(unsigned first, unsigned step, unsigned end, const char* of) {
    const Wait expected = threads[first].wait;
    for (unsigned i = first; i < end; i += step) {
        const Wait found = threads[i].wait;
        if (found.reason != expected.reason || found.at != expected.at)
            refuse("%s wait for different things: number %u for %d at %p, number %u for %d at %p\n", of, first, expected.reason,
                   expected.at, i, found.reason, found.at);
    }
    return expected.reason;
}

// Lanes and warps have their turns forwards or backwards. That changes at each wait, and four launches in a row, and four thread
// blocks, begin in the four ways that there are: what one thread writes and another reads without waiting is wrong in some.
static unsigned launches;
static unsigned place(unsigned i, unsigned count, bool forwards) { return forwards ? i : count - 1 - i; }

// Have the lanes of a warp go on until they wait for others.
static void run_warp(unsigned first, bool forwards) {
    do {
        for (unsigned lane = 0; lane < OF_WARP; ++lane) {
            threadIdx.x = first + place(lane, OF_WARP, forwards);
            go(scheduler, turn().at);
        }
        forwards = !forwards;
    } while (agreed(first, 1, first + OF_WARP, "lanes of a warp") == FOR_WARP);
}

// Have all threads do their work on a thread block.
static void run_thread_block() {
    const unsigned warps = blockDim.x / OF_WARP, order = launches + blockIdx.x;
    bool lanes_forwards = order % 2, warps_forwards = order / 2 % 2;
    do {
        for (unsigned warp = 0; warp < warps; ++warp) run_warp(place(warp, warps, warps_forwards) * OF_WARP, lanes_forwards);
        lanes_forwards = !lanes_forwards;
        warps_forwards ^= lanes_forwards;
    } while (agreed(0, OF_WARP, blockDim.x, "warps of a thread block") != FOR_THE_NEXT);
    for (unsigned thread = 0; thread < blockDim.x; ++thread)
        if (threads[thread].canary != CANARY) refuse("thread %u needs a larger stack\n", thread);
}

// What lanes of a warp give each other. A lane gives its next value to the other place, as not all may have read this one.
static unsigned long long sent[2][OF_WARP];

template <class T>
static T of_lane(unsigned mask, T value, unsigned lane, const void* at) {
    static_assert(sizeof(T) <= sizeof sent[0][0]);
    if (mask != ~0u || lane >= OF_WARP) refuse("lanes %#x read of lane %u\n", mask, lane);
    unsigned long long* const values = sent[turn().sends++ % 2];
    memcpy(&values[threadIdx.x % OF_WARP], &value, sizeof(T));
    wait(FOR_WARP, at);
    memcpy(&value, &values[lane], sizeof(T));
    return value;
}

// What kernels declare as __shared__ is this module's thread-local memory, all that it has: so it can be found.
#define __shared__ static thread_local
static thread_local char is_there;
static int fill_of_module(dl_phdr_info* module, size_t, void*) {
    for (int i = 0; i < module->dlpi_phnum; ++i) {
        const auto& part = module->dlpi_phdr[i];
        char* const begin = static_cast<char*>(module->dlpi_tls_data);
        if (part.p_type == PT_TLS && begin && begin <= &is_there && &is_there < begin + part.p_memsz) {
            memset(begin, UNWRITTEN, part.p_memsz);
            return 1;
        }
    }
    return 0;
}
static void forget_shared_memory() {
    is_there = 0;
    if (!dl_iterate_phdr(fill_of_module, nullptr)) refuse("shared memory was not found\n");
}

}  // namespace host

// As `Kernels.launch` does, in thread blocks of `block`, with `count` arguments.
extern "C" void launch_on_host(host::Kernel kernel, long threads, unsigned block, const host::Word* arguments, unsigned count) {
    using namespace host;
    if (threads < 1 || block < 1 || block > MOST_THREADS || block % OF_WARP || count > MOST_WORDS)
        refuse("%ld threads in thread blocks of %u, with %u arguments\n", threads, block, count);
    host::kernel = kernel;
    memset(words, UNWRITTEN, sizeof words);
    memcpy(words, arguments, count * sizeof *arguments);
    blockDim.x = block, gridDim.x = unsigned((threads + block - 1) / block);
    host::threads = static_cast<Thread*>(malloc(block * sizeof(Thread)));
    if (!host::threads) refuse("no memory for %u threads\n", block);
    for (unsigned thread = 0; thread < block; ++thread) begin(thread);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        forget_shared_memory();
        run_thread_block();
    }
    free(host::threads);
    ++launches;
}
