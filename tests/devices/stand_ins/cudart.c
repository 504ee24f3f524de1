/* Stands in for the calls of CUDA's runtime that edgekit makes: "device memory" is the host's, a stream does things at once. */
#include <stdlib.h>
#include <string.h>

int cudaMalloc(void **pointer, size_t size) { return (*pointer = malloc(size)) ? 0 : 2; }
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaStreamCreate(void **stream) { *stream = malloc(1); return 0; }
int cudaStreamDestroy(void *stream) { free(stream); return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream)
{
    if (kind != 1 && kind != 2)
        return 21; /* cudaErrorInvalidMemcpyDirection */
    memcpy(target, source, size);
    return 0;
}
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "invalid argument"; }
