// AdamW against float64.
#include "llmc/ops/adamw.h"
#include <memory>
#include "test/reference.h"

namespace {

struct Hyper { float lr, beta1, beta2, eps, weight_decay; };

// One tensor in float64, whose arithmetic is the reference's.
struct Reference {
    Values w, m, v;

    explicit Reference(const Values& start) : w(start), m(start.size(), 0), v(start.size(), 0) {}
    void update(const Values& g, const Hyper& h, int step) {
        for (size_t i = 0; i < w.size(); i++) {
            m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * g[i];
            v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g[i] * g[i];
            double m_hat = m[i] / (1 - std::pow(static_cast<double>(h.beta1), step)), v_hat = v[i] / (1 - std::pow(static_cast<double>(h.beta2), step));
            w[i] = w[i] * (1 - static_cast<double>(h.lr) * h.weight_decay) - h.lr * m_hat / (std::sqrt(v_hat) + h.eps);
        }
    }
};

struct Device {
    Floats master, grad, m, v;
    FloatXs weight;
    explicit Device(const Values& start)
        : master(start), grad(start.size()), m(Values(start.size(), 0)), v(Values(start.size(), 0)), weight(start.size()) {}
    AdamWTensor tensor(bool with_weight) { return {master, with_weight ? weight.data() : nullptr, grad, m, v, static_cast<int64_t>(master.size)}; }
};

AdamWHyper at_step(const Hyper& h, int64_t step) { return adamw_hyper(h.lr, h.beta1, h.beta2, h.eps, h.weight_decay, step); }

}  // namespace

TEST_CASE("adamw_update is the formula, for several tensors and steps") {
    const std::vector<Hyper> hypers = {{0.0036f, 0.9f, 0.95f, 1e-8f, 0}, {0.3f, 0.8f, 0.95f, 1e-10f, 0}, {0.01f, 0.96f, 0.95f, 1e-10f, 0.1f}};
    const int sizes[] = {1, 37, 10000};
    for (bool with_weight : {true, false}) {
        CAPTURE(with_weight);
        Random random(1);
        std::vector<Reference> want;
        std::vector<std::unique_ptr<Device>> device;
        for (int n : sizes) {
            Values start = random.floats(n);
            want.emplace_back(start);
            device.push_back(std::make_unique<Device>(start));
        }
        for (int step = 1; step <= 4; step++) {
            std::vector<AdamWTensor> tensors;
            std::vector<AdamWHyper> step_hypers;
            for (int i = 0; i < 3; i++) {
                Values g = random.floats(sizes[i], 0.01);
                if (step == 2) g[0] = 0;
                device[i]->grad.write(g);
                want[i].update(g, hypers[i], step);
                tensors.push_back(device[i]->tensor(with_weight));
                step_hypers.push_back(at_step(hypers[i], step));
            }
            adamw_update(tensors.data(), OnDevice(step_hypers), 3, nullptr);
        }
        for (int i = 0; i < 3; i++) {
            CAPTURE(i);
            // 1 - beta has the rounding of beta in it: 0.05 is off by 2^-24 / 0.05. Updates are of size lr.
            const double moment = 40 * FP32_ROUND;
            check_close("m", device[i]->m.values(), want[i].m, moment, 0.01 * moment);
            check_close("v", device[i]->v.values(), want[i].v, 2 * moment, 0);
            check_close("master", device[i]->master.values(), want[i].w, 8 * FP32_ROUND, 4 * hypers[i].lr * 2 * moment);
            if (with_weight) CHECK(device[i]->weight.same_bytes(FloatXs(device[i]->master.values())));
            else CHECK(device[i]->weight.same_bytes(FloatXs(sizes[i])));        // not written
        }
    }
}

TEST_CASE("adamw_update of a zero gradient moves nothing") {
    Device device({1, -2, 3});
    device.grad.write({0, 0, 0});
    AdamWTensor tensor = device.tensor(true);
    adamw_update(&tensor, OnDevice<AdamWHyper>({at_step({0.1f, 0.9f, 0.95f, 1e-10f, 0}, 1)}), 1, nullptr);
    CHECK(device.master.values() == Values{1, -2, 3});
}

TEST_CASE("adamw_update late in a run") {
    const Hyper h{0.01f, 0.9f, 0.95f, 1e-8f, 0};
    Device device(Values{1});
    device.m.write({0.5});
    device.v.write({0.25});
    device.grad.write({0.5});
    AdamWTensor tensor = device.tensor(true);
    adamw_update(&tensor, OnDevice<AdamWHyper>({at_step(h, 1000000)}), 1, nullptr);    // no correction is left: m = 0.5, v = 0.25, a step of lr
    check_close("master", device.master.values(), {1 - 0.01}, 4 * FP32_ROUND, 0);
}

TEST_CASE("adamw_update of many tensors") {   // of more than the 584 that a launch on CUDA takes
    const int count = 1200, n = 16;
    Random random(2);
    Values start = random.floats(count * n), g = random.floats(count * n, 0.01), want;
    Device device(start);
    device.grad.write(g);
    std::vector<AdamWTensor> tensors;
    std::vector<AdamWHyper> hypers;
    for (int i = 0; i < count; i++) {
        const Hyper h{0.01f + 0.001f * static_cast<float>(i % 7), 0.9f, 0.95f, 1e-8f, 0};
        AdamWTensor all = device.tensor(true);
        tensors.push_back({all.master + i * n, all.weight + i * n, all.grad + i * n, all.m + i * n, all.v + i * n, i % 3 == 0 ? n - 3 : n});
        hypers.push_back(at_step(h, 1));
        Reference one(Values(start.begin() + i * n, start.begin() + (i + 1) * n));
        one.update(Values(g.begin() + i * n, g.begin() + (i + 1) * n), h, 1);
        for (int k = 0; k < n; k++) want.push_back(k < tensors.back().n ? one.w[k] : start[i * n + k]);
    }
    adamw_update(tensors.data(), OnDevice(hypers), count, nullptr);
    // 1 - beta has the rounding of beta in it, and so has the square root of v; an update is of size 0.016 at most.
    check_close("master", device.master.values(), want, 8 * FP32_ROUND, 0.016 * 80 * FP32_ROUND);
}

TEST_CASE("adamw refuses wrong steps and sizes") {
    CHECK_REFUSED("adamw_hyper", adamw_hyper(0.1f, 0.9f, 0.95f, 1e-8f, 0, 0));
    CHECK_REFUSED("adamw_hyper", adamw_hyper(0.1f, 0.9f, 0.95f, 1e-8f, 0, -1));
    Device device(Values{1});
    AdamWTensor tensor = device.tensor(true);
    tensor.n = 0;
    CHECK_REFUSED("adamw_update", adamw_update(&tensor, OnDevice<AdamWHyper>({at_step({0.1f, 0.9f, 0.95f, 1e-8f, 0}, 1)}), 1, nullptr));
}
