// A GPU's thread blocks on a host. Each thread has a stack, and threads take turns: one goes on from where it waits when all
// others of its warp, or of its thread block, wait there, too.
#undef _FORTIFY_SOURCE  // whose longjmp refuses to go to another stack
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct Index {
    unsigned x;
};
static Index blockIdx, threadIdx, blockDim, gridDim;  // of the thread whose turn it is

namespace host {

constexpr unsigned OF_WARP = 32, MOST_THREADS = 512;  // the latter of a thread block

enum Wait { FOR_WARP, FOR_THREAD_BLOCK, FOR_THE_NEXT };  // the last: its work on a thread block is done

struct Thread {
    jmp_buf at;
    Wait wait;
    unsigned sends;  // values to other lanes so far
    alignas(16) char stack[1 << 18];
};
static Thread threads[MOST_THREADS];
static jmp_buf scheduler;
static void (*work)();

static Thread& turn() { return threads[threadIdx.x]; }

__attribute__((noinline)) static void go(jmp_buf from, jmp_buf to) {
    if (!_setjmp(from)) _longjmp(to, 1);
}
static void wait(Wait reason) {
    const unsigned own = threadIdx.x;
    turn().wait = reason;
    go(turn().at, scheduler);
    threadIdx.x = own;
}

static void live() {
    for (;;) {
        wait(FOR_THE_NEXT);
        work();
    }
}
static void begin(unsigned thread) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = threads[thread].stack, context.uc_stack.ss_size = sizeof threads[thread].stack;
    makecontext(&context, live, 0);
    threads[thread].sends = 0, threadIdx.x = thread;
    if (!_setjmp(scheduler)) setcontext(&context);
}

static Wait agreed(unsigned first, unsigned step, unsigned end, const char* of) {
    for (unsigned i = first; i < end; i += step)
        if (threads[i].wait != threads[first].wait) {
            fprintf(stderr, "%s wait for different things: number %u for %d, number %u for %d\n", of, first,
                    threads[first].wait, i, threads[i].wait);
            abort();
        }
    return threads[first].wait;
}

static unsigned place(unsigned i, unsigned count, bool forwards) { return forwards ? i : count - 1 - i; }

// Have the lanes of a warp go on until they wait for others.
static void run_warp(unsigned first) {
    bool forwards = blockIdx.x % 2;
    do {
        for (unsigned lane = 0; lane < OF_WARP; ++lane) {
            threadIdx.x = first + place(lane, OF_WARP, forwards);
            go(scheduler, turn().at);
        }
        forwards = !forwards;
    } while (agreed(first, 1, first + OF_WARP, "lanes of a warp") == FOR_WARP);
}

// Have all threads do their work on a thread block. Lanes and warps have their turns forwards and backwards in turn: what one
// writes and another reads without waiting is found either way.
static void run_thread_block() {
    const unsigned warps = blockDim.x / OF_WARP;
    bool forwards = blockIdx.x % 2;
    do {
        for (unsigned warp = 0; warp < warps; ++warp) run_warp(place(warp, warps, forwards) * OF_WARP);
        forwards = !forwards;
    } while (agreed(0, OF_WARP, blockDim.x, "warps of a thread block") != FOR_THE_NEXT);
}

// What lanes of a warp give each other. A lane gives its next value to the other place, as not all may have read this one.
static unsigned long long sent[2][OF_WARP];

template <class T>
static T of_lane(T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof sent[0][0]);
    unsigned long long* const values = sent[turn().sends++ % 2];
    memcpy(&values[threadIdx.x % OF_WARP], &value, sizeof(T));
    wait(FOR_WARP);
    memcpy(&value, &values[lane], sizeof(T));
    return value;
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

}  // namespace host

// As `Kernels.launch` does, in thread blocks of `block`, with `count` arguments.
extern "C" void launch_on_host(host::Kernel kernel, long threads, unsigned block, const host::Word* arguments, unsigned count) {
    if (block > host::MOST_THREADS || block % host::OF_WARP || count > host::MOST_WORDS) {
        fprintf(stderr, "a thread block of %u threads, or %u arguments\n", block, count);
        abort();
    }
    host::kernel = kernel, host::work = host::call_kernel;
    memcpy(host::words, arguments, count * sizeof *arguments);
    blockDim.x = block, gridDim.x = unsigned((threads + block - 1) / block);
    for (unsigned thread = 0; thread < block; ++thread) host::begin(thread);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) host::run_thread_block();
}
