/* IVON in one pass over memory, for float32 on a CPU: see update_rule.py for the equations and fused_kernel.py for its use.
   Loops are plain, so that any compiler can vectorize them. */
#include <math.h>
#include <stdint.h>

/* noise <- noise / sqrt(n (h + d)), parameter <- mean + noise */
void ivon_perturb(
    int64_t size, float *restrict parameter, const float *restrict mean, float *restrict noise,
    const float *restrict h, float n, float decay
) {
    for (int64_t i = 0; i < size; i++) {
        float z = noise[i] / sqrtf(n * (h[i] + decay));
        noise[i] = z;
        parameter[i] = mean[i] + z;
    }
}

typedef struct {
    float n, decay, step_size, beta1, forget, inverse_bias, clip_radius;
    int32_t price;
} settings;

/* One step of mean, g and h from the gradient and, with `price`, its product with the noise, otherwise f itself. */
void ivon_update(
    int64_t size, float *restrict mean, float *restrict g, float *restrict h, const float *restrict gradient,
    const float *restrict product, const settings *s
) {
    const float decay = s->decay, keep = s->beta1, forget = s->forget, half = 0.5f * s->forget * s->forget;
    const float bias = s->inverse_bias, radius = s->clip_radius, step = s->step_size, n = s->price ? s->n : 1.0f;
    const float priced = s->price ? 1.0f : 0.0f;
    for (int64_t i = 0; i < size; i++) {
        float total = h[i] + decay;
        float f = n * product[i] * (priced * total + (1.0f - priced));
        float d = f - h[i];
        float curvature = h[i] + forget * d + half * d * d / total;
        float momentum = gradient[i] + keep * (g[i] - gradient[i]);
        float u = (bias * momentum + decay * mean[i]) / (curvature + decay);
        u = u > radius ? radius : u;
        u = u < -radius ? -radius : u;
        h[i] = curvature;
        g[i] = momentum;
        mean[i] -= step * u;
    }
}
