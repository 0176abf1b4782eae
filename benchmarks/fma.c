/* The machine's rate of multiply-adds: independent chains of them, as many as hide the latency, none touching memory. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__aarch64__)
#define CHAINS 20 /* up to four pipes, four cycles each */
#else
#define CHAINS 12 /* two pipes, four to five cycles each */
#endif

typedef float vector __attribute__((vector_size(4 * LANES)));

long multiply_adds_per_iteration(void) { return (long)LANES * CHAINS; }

float run_chains(long iterations, float factor, float term) {
  vector x[CHAINS], m = (vector){} + factor, b = (vector){} + term, sum = (vector){};
  for (int i = 0; i < CHAINS; ++i) x[i] = (vector){} + (float)i;
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 20
    for (int i = 0; i < CHAINS; ++i) x[i] = x[i] * m + b;
  }
  for (int i = 0; i < CHAINS; ++i) sum += x[i];
  float total = 0;
  for (int l = 0; l < LANES; ++l) total += sum[l];
  return total;
}
