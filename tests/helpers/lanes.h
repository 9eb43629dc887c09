// The 32 lanes of a warp on a host: each has a stack, and they take turns, one going on from where it waits when all others
// wait, too.
#undef _FORTIFY_SOURCE  // whose longjmp refuses to go to another stack
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

struct Index {
    unsigned x;
};
static Index blockIdx, threadIdx;  // of the lane whose turn it is

struct Lane {
    jmp_buf at;
    unsigned waits;
    bool has_ended;
    alignas(16) char stack[1 << 18];
};
static Lane lanes[32];
static Lane* turn;
static jmp_buf host;

__attribute__((noinline)) static void go(jmp_buf from, jmp_buf to) {
    if (!_setjmp(from)) _longjmp(to, 1);
}
static void wait_for_all() {
    const Index block = blockIdx, thread = threadIdx;
    ++turn->waits;
    go(turn->at, host);
    blockIdx = block, threadIdx = thread;
}

template <class Work>
static const Work* work_of_lanes;

template <class Work>
static void live() {
    (*work_of_lanes<Work>)(unsigned(turn - lanes));
    turn->has_ended = true;
    _longjmp(host, 1);
}

// Have each lane do its work, given its number.
template <class Work>
static void run_lanes(const Work& work) {
    work_of_lanes<Work> = &work;
    for (Lane& lane : lanes) {
        ucontext_t begin;
        getcontext(&begin);
        begin.uc_stack.ss_sp = lane.stack, begin.uc_stack.ss_size = sizeof lane.stack;
        makecontext(&begin, live<Work>, 0);
        lane.waits = 0, lane.has_ended = false, turn = &lane;
        if (!_setjmp(host)) setcontext(&begin);
    }
    // Forwards and backwards by turns: what one lane writes and another reads without waiting is found either way.
    for (bool forwards = false; !lanes[0].has_ended; forwards = !forwards)
        for (int k = 0; k < 32; ++k) {
            turn = &lanes[forwards ? k : 31 - k];
            go(host, turn->at);
        }
    for (const Lane& lane : lanes)
        if (!lane.has_ended || lane.waits != lanes[0].waits) {
            fprintf(stderr, "lanes of a warp waited for each other %u and %u times\n", lanes[0].waits, lane.waits);
            abort();
        }
}
