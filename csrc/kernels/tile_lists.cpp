#include "tile_lists.h"

#include <array>
#include <numeric>
#include <vector>

#include "../parallel.h"

namespace g2rpo {
namespace {

using Ints = std::vector<int32_t>;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Least and greatest of each tile of a tiled axis.
struct Extremes {
    Ints least, greatest;
};

G2RPO_VECTORISED
void find_extremes(const int32_t* x, int64_t size, int64_t block, Extremes& out) {
    for (int64_t first = 0; first < size; first += block) {
        const int64_t last = std::min(first + block, size);
        int32_t least = x[first], greatest = x[first];
        for (int64_t i = first + 1; i < last; ++i) {
            least = std::min(least, x[i]);
            greatest = std::max(greatest, x[i]);
        }
        out.least.push_back(least);
        out.greatest.push_back(greatest);
    }
}

Extremes extremes_of(const int32_t* x, int64_t size, int64_t block) {
    Extremes extremes;
    find_extremes(x, size, block, extremes);
    return extremes;
}

// Of a key tile: the query tiles in [first, last) that visit it, where there is no window, and those in
// [full_first, full_last) that need no mask; both are contiguous because END bounds each from above.
struct Span {
    int64_t first, full_first, full_last, last;
};

std::vector<Span> spans_of(const TileProblem& problem) {
    const Extremes end = extremes_of(problem.end, problem.size, problem.block_kv);
    const int64_t block_q = problem.block_q, block_kv = problem.block_kv, num_q = problem.num_q();
    std::vector<Span> spans(end.least.size());
    for (size_t n = 0; n < spans.size(); ++n) {
        const int64_t key = static_cast<int64_t>(n) * block_kv;
        const int64_t greatest = std::clamp<int64_t>(end.greatest[n], 0, problem.size);
        const int64_t least = std::clamp<int64_t>(end.least[n], 0, num_q * block_q);
        Span& span = spans[n];
        span.first = key / block_q;
        span.last = std::max(span.first, divide_up(greatest, block_q));
        span.full_first = std::min(divide_up(key + block_kv - 1, block_q), span.last);
        span.full_last = std::clamp(least / block_q, span.full_first, span.last);
    }
    return spans;
}

// Calls visit(n, first, last, full) for runs of query tiles that visit key tile n, ascending in n and then in
// query tiles.
template <typename Visit>
void for_runs(const TileProblem& problem, const std::vector<Span>& spans, const Visit& visit) {
    const auto num_kv = static_cast<int64_t>(spans.size());
    if (problem.position == nullptr) {
        for (int64_t n = 0; n < num_kv; ++n) {
            visit(n, spans[n].first, spans[n].full_first, false);
            visit(n, spans[n].full_first, spans[n].full_last, true);
            visit(n, spans[n].full_last, spans[n].last, false);
        }
        return;
    }
    const Extremes query = extremes_of(problem.position, problem.size, problem.block_q);
    const Extremes key = extremes_of(problem.position, problem.size, problem.block_kv);
    for (int64_t n = 0; n < num_kv; ++n) {
        const Span& span = spans[n];
        const int64_t seen = problem.window + key.greatest[n], clear = problem.window + key.least[n];
        for (int64_t m = span.first; m < span.last; ++m)
            if (query.least[m] < seen)
                visit(n, m, m + 1, span.full_first <= m && m < span.full_last && query.greatest[m] < clear);
    }
}

// Lists end to end: where each begins, how long it and its part of full pairs are.
struct Rows {
    Ints first, full, count;

    explicit Rows(int64_t rows) : first(rows), full(rows), count(rows) {}
    int64_t lay_out() {
        std::exclusive_scan(count.begin(), count.end(), first.begin(), 0);
        return first.back() + count.back();
    }
    // Where the next full and the next masked entry go.
    Ints full_place() const { return first; }
    Ints masked_place() const {
        Ints place(first.size());
        for (size_t i = 0; i < place.size(); ++i) place[i] = first[i] + full[i];
        return place;
    }
};

// Indices by falling count, ties as they come; counts are -1 or more.
Ints heaviest_first(const Ints& count) {
    Ints place(*std::max_element(count.begin(), count.end()) + 2), order(count.size());
    for (const int32_t c : count) ++place[c + 1];
    std::exclusive_scan(place.rbegin(), place.rend(), place.rbegin(), 0);
    for (size_t i = 0; i < count.size(); ++i) order[place[count[i] + 1]++] = static_cast<int32_t>(i);
    return order;
}

// Cuts each key tile's list into equal items of at most `bound` entries. Items that nothing is left for stand
// behind the last tile's, as tile -1.
void write_items(const Rows& rows, int64_t bound, int64_t most, int32_t* work, int32_t* slot) {
    const auto num_kv = static_cast<int64_t>(rows.count.size()), num_items = num_kv + most;
    std::vector<std::array<int32_t, 5>> items;
    Ints weight;
    int64_t first_slot = 0;
    for (int64_t n = 0; n < num_kv; ++n) {
        const int64_t parts = std::max<int64_t>(1, divide_up(rows.count[n], bound));
        const int64_t slots = parts > 1 ? parts : 0, size = divide_up(rows.count[n], parts);
        const int64_t stop = n + 1 < num_kv ? parts : num_items - static_cast<int64_t>(items.size());
        for (int64_t i = 0; i < stop; ++i) {
            const int64_t begin = i * size;
            const int64_t count = std::clamp<int64_t>(rows.count[n] - begin, 0, size);
            const int64_t full = std::clamp<int64_t>(rows.full[n] - begin, 0, count);
            const int64_t item[] = {i < parts ? n : -1, rows.first[n] + begin, full, count,
                                    slots > 0 ? first_slot + i : -1};
            std::copy(std::begin(item), std::end(item), items.emplace_back().begin());
            weight.push_back(i < parts ? items.back()[3] : -1);
        }
        *slot++ = static_cast<int32_t>(first_slot);
        *slot++ = static_cast<int32_t>(slots);
        first_slot += slots;
    }
    for (const int32_t i : heaviest_first(weight)) work = std::copy(items[i].begin(), items[i].end(), work);
}

}  // namespace

void query_lists(const TileProblem& problem, int32_t* work, int32_t* key) {
    const std::vector<Span> spans = spans_of(problem);
    Rows rows(problem.num_q());
    for_runs(problem, spans, [&](int64_t, int64_t first, int64_t last, bool full) {
        for (int64_t m = first; m < last; ++m) {
            rows.count[m] += 1;
            rows.full[m] += full;
        }
    });
    const int64_t total = rows.lay_out();
    Ints full_place = rows.full_place(), masked_place = rows.masked_place();
    for_runs(problem, spans, [&](int64_t n, int64_t first, int64_t last, bool full) {
        int32_t* const place = full ? full_place.data() : masked_place.data();
        for (int64_t m = first; m < last; ++m) key[place[m]++] = static_cast<int32_t>(n);
    });
    std::fill(key + total, key + problem.most_pairs(), 0);
    for (const int32_t m : heaviest_first(rows.count)) {
        const int32_t row[] = {m, rows.first[m], rows.full[m], rows.count[m]};
        work = std::copy(std::begin(row), std::end(row), work);
    }
}

void kv_lists(const TileProblem& problem, int64_t least, int64_t most, int32_t* work, int32_t* query,
              int32_t* slot) {
    const std::vector<Span> spans = spans_of(problem);
    Rows rows(problem.num_kv());
    for_runs(problem, spans, [&](int64_t n, int64_t first, int64_t last, bool full) {
        rows.count[n] += static_cast<int32_t>(last - first);
        rows.full[n] += static_cast<int32_t>(full ? last - first : 0);
    });
    const int64_t total = rows.lay_out();
    Ints full_place = rows.full_place(), masked_place = rows.masked_place();
    for_runs(problem, spans, [&](int64_t n, int64_t first, int64_t last, bool full) {
        int32_t& place = full ? full_place[n] : masked_place[n];
        std::iota(query + place, query + place + (last - first), static_cast<int32_t>(first));
        place += static_cast<int32_t>(last - first);
    });
    std::fill(query + total, query + problem.most_pairs(), 0);
    write_items(rows, std::max(least, divide_up(total, most)), most, work, slot);
}

}  // namespace g2rpo
