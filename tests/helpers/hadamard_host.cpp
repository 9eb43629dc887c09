// hadamard.cu compiled by a host compiler, whose threads take turns between synchronizations.
// HADAMARD_SOURCE is hadamard.cu with a plan's macros in front.
#include HADAMARD_SOURCE

extern "C" void hadamard_on_host(const Read* x, uint4* y, long long vectors) {
    for (long long first = 0; first < vectors; first += PARTS * TILE / VECTOR)
        hadamard_of_thread_block(x, y, vectors, first);
}

// Bytes of shared memory.
extern "C" int shared_bytes() { return EXCHANGED ? int(sizeof shared) : 0; }

// Where in shared memory, in floats, a thread's element is: as read and written, or exchanged.
extern "C" int place_in_shared(int thread, int i, bool exchanged) {
    return exchanged ? with_gaps(thread_exchanged(thread)) + with_gaps(number_exchanged(i))
                     : with_gaps(thread_as_read(thread)) + with_gaps(number_as_read(i));
}
