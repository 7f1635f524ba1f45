/* Runs the bridge's C code on bytes from a test: built with ASan and UBSan, driven by tests/test_bridge_*.py.
 *
 *     harness decode  < u16 limit, u8 seeds, u32 seed..., then u32 size, bytes ...    > u16 size, frame ..., then u32 counts
 *     harness encode  < u32 seed, u8 flags, u8 channel, u16 sequence, u32 time, u16 size, payload ...   > the wire
 *     harness corrupt COUNT SEED   damages COUNT frames, one at a time: how many were accepted with different content
 *     harness faults COUNT SEED    damages a stream COUNT times per kind of fault: frames lost per fault, longest run
 *     harness device COUNT SEED    gives the device COUNT intact frames of random content
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bridge_internal.h"

static uint64_t state;

static uint32_t pick(uint32_t below) { /* xorshift64*; below 2^24, with a bias that is negligible here */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(((state * 2685821657736338717ull) >> 32) % below);
}

static bool take(void *to, size_t size) { return fread(to, 1, size, stdin) == size; }

static size_t write_nothing(void *board, const uint8_t *bytes, size_t count) {
    (void)board, (void)bytes;
    return count;
}
static uint32_t clock_now;
static uint32_t now(void *board) {
    (void)board;
    return clock_now;
}
static const bridge_port PORT = {write_nothing, now, NULL, NULL, NULL};

static int decode(void) {
    static uint8_t frame[BRIDGE_FRAME_LIMIT], bytes[1 << 16];
    static uint32_t seeds[255];
    bridge_decoder d = {.frame = frame, .seeds = seeds};
    uint32_t size;
    if (!take(&d.limit, 2) || !take(&d.seed_count, 1) || !take(seeds, 4u * d.seed_count)) return 2;
    while (take(&size, 4)) {
        if (size > sizeof bytes || !take(bytes, size)) return 2;
        for (uint32_t i = 0; i < size; i++) {
            if (bridge_decode(&d, bytes[i]) != BRIDGE_ACCEPTED) continue;
            fwrite(&d.size, 2, 1, stdout);
            fwrite(frame, 1, d.size, stdout);
        }
    }
    fwrite(d.counts, 4, BRIDGE_VERDICTS, stdout);
    return 0;
}

static int encode(void) {
    static bridge b;
    struct { uint32_t seed; } first;
    uint8_t flags, channel, payload[BRIDGE_FRAME_LIMIT];
    uint16_t sequence, size;
    uint32_t time;
    b.port = &PORT;
    while (take(&first, 4)) {
        if (!take(&flags, 1) || !take(&channel, 1) || !take(&sequence, 2) || !take(&time, 4) || !take(&size, 2) ||
            size > sizeof payload || !take(payload, size) || channel >= BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS)
            return 2;
        b.seeds[channel] = first.seed;
        if (!bridge_open_frame(&b, channel, flags, sequence, time, size, 0)) return 3;
        bridge_put_bytes(&b, payload, size);
        bridge_close_frame(&b);
        fwrite(b.tx, 1, b.tx_end, stdout);
        b.tx_end = 0;
    }
    return 0;
}

/* Puts a frame of random content into b->tx, without its delimiter; returns its size. raw: its content without CRC. */
static size_t make(bridge *b, uint8_t *raw, size_t *raw_size) {
    uint8_t payload[BRIDGE_FRAME_MOST];
    size_t size = pick(8) ? pick(64) : pick(BRIDGE_FRAME_MOST - OVERHEAD + 1);
    uint32_t zeros = pick(4);
    for (size_t i = 0; i < size; i++) payload[i] = pick(4) < zeros ? 0 : (uint8_t)pick(256);
    uint8_t channel = (uint8_t)pick(BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS);
    uint16_t sequence = (uint16_t)pick(65536);
    uint32_t time = pick(UINT32_MAX);
    b->tx_end = b->tx_start = 0;
    bridge_open_frame(b, channel, (uint8_t)pick(4), sequence, time, size, 0);
    bridge_put_bytes(b, payload, size);
    bridge_close_frame(b);
    if (raw) { /* decode it on its own: the intact frame must pass */
        bridge_decoder d = {.frame = raw, .seeds = b->seeds, .limit = BRIDGE_FRAME_MOST,
                            .seed_count = BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS};
        bridge_verdict verdict = BRIDGE_NOTHING;
        for (size_t i = 0; i < b->tx_end; i++) verdict = bridge_decode(&d, b->tx[i]);
        if (verdict != BRIDGE_ACCEPTED) abort();
        *raw_size = d.size;
    }
    return (size_t)(b->tx_end - 1);
}

static void flip(uint8_t *bytes, size_t bit) { bytes[bit / 8] = (uint8_t)(bytes[bit / 8] ^ 1u << bit % 8); }

enum { FLIP, FLIPS, REPLACED, DROPPED, DOUBLED, BURST, RUN_LOST, CUT, KINDS };
static const char *const NAMES[KINDS] = {"flip", "flips", "replaced", "dropped", "doubled", "burst", "run_lost", "cut"};

/* Damages bytes, which have room for one more, with one fault; returns the new size. */
static size_t damage(uint8_t *bytes, size_t size, uint32_t kind) {
    size_t at = pick((uint32_t)size), count = 1 + pick(8);
    switch (kind) {
    case FLIP: flip(bytes, pick((uint32_t)size * 8)); return size;
    case FLIPS: for (count++; count; count--) flip(bytes, pick((uint32_t)size * 8)); return size;
    case REPLACED: bytes[at] = (uint8_t)pick(256); return size;
    case DROPPED: memmove(bytes + at, bytes + at + 1, size - at - 1); return size - 1;
    case DOUBLED: memmove(bytes + at + 1, bytes + at, size - at); return size + 1;
    case BURST: for (; count && at < size; count--) bytes[at++] = (uint8_t)pick(256); return size;
    case RUN_LOST: if (count > size - at) count = size - at; memmove(bytes + at, bytes + at + count, size - at - count);
        return size - count;
    default: return at; /* cut off the rest, including the delimiter */
    }
}

static void prepare(bridge *b) {
    b->port = &PORT;
    for (uint8_t i = 0; i < BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS; i++) b->seeds[i] = i ? pick(UINT32_MAX) : 0;
}

static int corrupt(uint32_t count) {
    static bridge b;
    static uint8_t raw[BRIDGE_FRAME_MOST], wire[2 * BRIDGE_FRAME_MOST], frame[BRIDGE_FRAME_MOST];
    uint32_t accepted = 0, unchanged = 0;
    prepare(&b);
    bridge_decoder d = {.frame = frame, .seeds = b.seeds, .limit = BRIDGE_FRAME_MOST,
                        .seed_count = BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS};
    for (uint32_t i = 0; i < count;) {
        size_t raw_size, size = make(&b, raw, &raw_size), damaged;
        for (uint32_t again = 0; again < 20 && i < count; again++) {
            memcpy(wire, b.tx, size);
            damaged = damage(wire, size, pick(KINDS));
            if (damaged == size && !memcmp(wire, b.tx, size)) continue;
            i++;
            wire[damaged] = 0;
            for (size_t j = 0; j <= damaged; j++)
                if (bridge_decode(&d, wire[j]) == BRIDGE_ACCEPTED) {
                    bool same = d.size == raw_size && !memcmp(frame, raw, raw_size);
                    accepted += !same;
                    unchanged += same; /* for example a doubled last byte that was cut off again */
                }
        }
    }
    printf("{\"corrupted\": %u, \"false_accepts\": %u, \"same_content\": %u}\n", count, accepted, unchanged);
    return accepted != 0;
}

/* A stream of IMU frames of 8 samples with a fault in about every 20th: measures the cost of each kind of fault. */
static int faults(uint32_t count) {
    static bridge b;
    static uint8_t wire[2 * BRIDGE_FRAME_MOST], frame[BRIDGE_FRAME_MOST], payload[96];
    uint32_t longest = 0;
    prepare(&b);
    bridge_decoder d = {.frame = frame, .seeds = b.seeds, .limit = BRIDGE_FRAME_MOST,
                        .seed_count = BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS};
    printf("{");
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        uint32_t lost = 0, run = 0;
        for (uint32_t done = 0, until = 10; done < count || until; until--) {
            for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)(pick(8) ? pick(256) : 0);
            b.tx_end = 0;
            bridge_open_frame(&b, 2, 0, (uint16_t)done, done, sizeof payload, 0);
            bridge_put_bytes(&b, payload, sizeof payload);
            bridge_close_frame(&b);
            size_t size = b.tx_end; /* the fault may also hit the delimiter */
            memcpy(wire, b.tx, size);
            if (done < count && until == 1) {
                do size = damage(memcpy(wire, b.tx, b.tx_end), b.tx_end, kind);
                while (size == b.tx_end && !memcmp(wire, b.tx, size));
                until = 10 + pick(20);
                done++;
            }
            uint32_t before = d.counts[BRIDGE_ACCEPTED];
            for (size_t i = 0; i < size; i++) bridge_decode(&d, wire[i]);
            run = d.counts[BRIDGE_ACCEPTED] == before ? run + 1 : 0;
            lost += run != 0;
            if (run > longest) longest = run;
        }
        printf("\"%s\": %.4f, ", NAMES[kind], lost / (double)count);
    }
    printf("\"faults_each\": %u, \"longest_run\": %u}\n", count, longest);
    return 0;
}

static uint8_t command(void *board, uint8_t id, const uint8_t *arguments, uint8_t size, uint8_t *data, uint8_t *filled) {
    (void)board, (void)id;
    for (*filled = 0; *filled < size; ++*filled) data[*filled] = arguments[*filled];
    return (uint8_t)(size % 3);
}

static bool set_baud(void *board, uint32_t baud) {
    (void)board;
    return baud % 2;
}

static size_t write_some(void *board, const uint8_t *bytes, size_t count) {
    (void)board, (void)bytes;
    return pick((uint32_t)count + 1);
}

static int device(uint32_t count) {
    static const bridge_channel channels[] = {{"imu", "m/s^2", BRIDGE_TYPE_I16, 6, 1000000, 0.001f},
                                              {"log", "", BRIDGE_TYPE_OBJECT, 1, 0, 1}};
    static const bridge_port port = {write_some, now, set_baud, command, NULL};
    static bridge b, host;
    static bridge_retained retained;
    static uint8_t blob[3000];
    static int16_t samples[6 * 20];
    bridge_identity identity = {1, 2, 3};
    bridge_object object = {blob, sizeof blob, 0, 0, 1};
    host.port = &PORT;
    for (uint32_t i = 0; i < count; i++) {
        if (i % 10000 == 0) {
            if (i % 20000) memset(&retained, (int)pick(256), sizeof retained);
            if (!bridge_init(&b, &port, identity, channels, 2, &retained, 115200)) return 4;
            memcpy(host.seeds, b.seeds, sizeof host.seeds);
        }
        uint8_t payload[64], sizes[] = {0, SIZE(BRIDGE_FIELDS_HELLO_ASK), 0, SIZE(BRIDGE_FIELDS_CREDIT), 0,
                                        SIZE(BRIDGE_FIELDS_TIME_ASK), 0, SIZE(BRIDGE_FIELDS_STATS_ASK)};
        uint8_t message = (uint8_t)pick(12), channel = (uint8_t)pick(3);
        size_t size = pick(4) && message < 8 && channel == 0 ? sizes[message] : pick(40);
        for (size_t j = 0; j < size; j++) payload[j] = (uint8_t)(pick(2) ? pick(4) : pick(256));
        if (size) payload[0] = message;
        uint16_t sequence = (uint16_t)(pick(8) ? retained.next + pick(20) - 10 : pick(65536));
        bridge_open_frame(&host, channel, (uint8_t)(pick(10) ? 0 : pick(16)), sequence, i, size, 0);
        bridge_put_bytes(&host, payload, size);
        bridge_close_frame(&host);
        bridge_receive(&b, host.tx, host.tx_end);
        host.tx_end = 0;
        clock_now += pick(20000);
        uint8_t most = bridge_stream_most(&b, 0);
        if (most > 20) most = 20;
        bridge_stream(&b, (uint8_t)pick(3), samples, (uint8_t)pick(most + 1u), i);
        if (object.sent == sizeof blob + CRC_SIZE) object.sent = 0;
        bridge_object_send(&b, &object);
        bridge_poll(&b);
        if (b.tx_end > BRIDGE_TX_BYTES || b.tx_start > b.tx_end) return 5;
    }
    printf("{\"accepted\": %u, \"executed\": %u, \"sent\": %u}\n", b.decoder.counts[BRIDGE_ACCEPTED], b.executed, b.sent);
    return 0;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    uint32_t count = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1000;
    state = argc > 3 ? strtoull(argv[3], NULL, 10) * 2 + 1 : 1;
    if (!strcmp(mode, "decode")) return decode();
    if (!strcmp(mode, "encode")) return encode();
    if (!strcmp(mode, "corrupt")) return corrupt(count);
    if (!strcmp(mode, "faults")) return faults(count);
    if (!strcmp(mode, "device")) return device(count);
    return 2;
}
