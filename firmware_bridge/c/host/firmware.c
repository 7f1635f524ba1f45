/* The example firmware on a PC: replays recordings over standard input and output, which replace the UART.
 *
 *     firmware [--rate HZ] [--type i16|f32] [--scale S] [--batch N] [--gap SECONDS] [--fast] [--repeat] [--baud N]
 *              [--stuck-baud] [--device N] [--boot N] [--clock MICROSECONDS] [--drift PPM] [--retained FILE]
 *              [--effects FILE] CSV...
 *
 * There is a gap of device time between recordings. --fast: send as quickly as the wire allows; device time still
 * follows the rate. --retained: file for memory that survives a reset. --effects: file that COUNT writes to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../app.h"

enum { COLUMNS = 16, FIFO = 512, BAUD_FD = 3 };

static struct {
    double rate, scale, gap, drift;
    bool fast, repeat, stuck, f32;
    uint32_t batch, baud, device, boot, clock;
    const char *retained, *effects;
} options = {50, 0.001, 10, 0, false, false, false, false, 16, 921600, 1, 1, 0, NULL, NULL};

typedef struct {
    double at; /* seconds of device time */
    float values[COLUMNS];
} row;
static row *rows;
static size_t row_count;
static uint8_t columns;
static app firmware;
static char **arguments;

static uint64_t wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static uint64_t started;
static uint32_t now(void *board) {
    (void)board;
    return options.clock + (uint32_t)(uint64_t)((double)(wall() - started) * (1 + options.drift * 1e-6));
}

static double tokens;
static uint64_t filled;
static size_t uart(void *board, const uint8_t *bytes, size_t count) { /* as the wire has carried */
    uint64_t time = wall();
    (void)board;
    tokens += (double)(time - filled) * options.baud / 10e6;
    if (tokens > FIFO) tokens = FIFO;
    filled = time;
    if (count > (size_t)tokens) count = (size_t)tokens;
    ssize_t done = count ? write(1, bytes, count) : 0;
    if (done < 0) {
        if (errno != EAGAIN) exit(0);
        done = 0;
    }
    tokens -= (double)done;
    return (size_t)done;
}

static bool set_baud(void *board, uint32_t baud) {
    (void)board;
    if (options.stuck || baud < 1200) return false;
    if (baud != options.baud) usleep(5000); /* lets written bytes leave the shim first */
    options.baud = baud;
    dprintf(BAUD_FD, "%u\n", baud);
    return true;
}

static uint32_t effect(uint32_t argument) {
    static uint32_t count;
    if (options.effects) {
        int file = open(options.effects, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (file < 0 || write(file, &argument, 4) != 4) exit(3);
        close(file);
    }
    return ++count;
}

static void reset(void) { /* all memory except the retained one is lost */
    char boot[16];
    for (char **a = arguments; *a; a++)
        if (!strcmp(*a, "--boot")) snprintf(a[1] = boot, sizeof boot, "%u", options.boot + 1);
    execv("/proc/self/exe", arguments);
    exit(3);
}

static void load(const char *path) {
    static double at;
    char line[4096];
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
    while (fgets(line, sizeof line, file)) {
        char *text = line, *end;
        row r = {at, {0}};
        uint8_t n = 0;
        for (; n < COLUMNS; n++, text = end + (*end == ',')) {
            r.values[n] = strtof(text, &end);
            if (end == text) break;
        }
        if (!n) continue; /* a header */
        if (columns && n != columns) exit(2);
        columns = n;
        if (row_count % 4096 == 0 && !(rows = realloc(rows, (row_count + 4096) * sizeof *rows))) exit(3);
        rows[row_count++] = r;
        at += 1 / options.rate;
    }
    fclose(file);
    at += options.gap;
}

static void parse(int count, char **argument) {
    for (int i = 1; i < count; i++) {
        const char *name = argument[i], *value = i + 1 < count ? argument[i + 1] : "0";
        if (!strcmp(name, "--fast")) options.fast = true;
        else if (!strcmp(name, "--repeat")) options.repeat = true;
        else if (!strcmp(name, "--stuck-baud")) options.stuck = true;
        else if (strncmp(name, "--", 2)) load(name);
        else {
            i++;
            uint32_t number = (uint32_t)strtoul(value, NULL, 10);
            if (!strcmp(name, "--rate")) options.rate = strtod(value, NULL);
            else if (!strcmp(name, "--scale")) options.scale = strtod(value, NULL);
            else if (!strcmp(name, "--gap")) options.gap = strtod(value, NULL);
            else if (!strcmp(name, "--drift")) options.drift = strtod(value, NULL);
            else if (!strcmp(name, "--type")) options.f32 = !strcmp(value, "f32");
            else if (!strcmp(name, "--batch")) options.batch = number;
            else if (!strcmp(name, "--baud")) options.baud = number;
            else if (!strcmp(name, "--device")) options.device = number;
            else if (!strcmp(name, "--boot")) options.boot = number;
            else if (!strcmp(name, "--clock")) options.clock = number;
            else if (!strcmp(name, "--retained")) options.retained = value;
            else if (!strcmp(name, "--effects")) options.effects = value;
            else {
                fprintf(stderr, "unknown option %s\n", name);
                exit(2);
            }
        }
    }
}

static bridge_retained *retained(void) {
    static bridge_retained here;
    int file = options.retained ? open(options.retained, O_RDWR | O_CREAT, 0600) : -1;
    if (file < 0) return &here;
    if (ftruncate(file, sizeof here)) exit(3);
    void *kept = mmap(NULL, sizeof here, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (kept == MAP_FAILED) exit(3);
    return kept;
}

/* The samples from `first` on that follow each other without a gap, for one frame; returns how many. */
static uint8_t gather(size_t first, uint8_t most, void *out) {
    uint8_t n = 0;
    int16_t *shorts = out;
    float *floats = out;
    for (; n < most && first + n < row_count; n++) {
        const row *r = &rows[first + n];
        if (n && r->at - r[-1].at > 1.5 / options.rate) break;
        for (uint8_t c = 0; c < columns; c++) {
            double value = r->values[c] / options.scale;
            if (options.f32) floats[n * columns + c] = (float)value;
            else shorts[n * columns + c] = (int16_t)lround(value > 32767 ? 32767 : value < -32768 ? -32768 : value);
        }
    }
    return n;
}

/* Sends the next frame of samples if it is due. `next` keeps counting over repetitions. */
static bool produce(size_t *next, uint64_t *origin) {
    static uint8_t payload[BRIDGE_FRAME_MOST];
    bridge *b = &firmware.link;
    uint8_t most = bridge_stream_most(b, 0);
    if (most > options.batch) most = (uint8_t)options.batch;
    size_t at = *next % row_count;
    if (!most || (*next >= row_count && !options.repeat) || !b->greeted) return false;
    double laps = (double)(*next / row_count) * (rows[row_count - 1].at + 1 / options.rate);
    uint8_t n = gather(at, most, payload);
    if (options.fast) {
        if (!b->streams[0].granted || b->tx_end - b->tx_start > 256) return false;
        if (!bridge_stream(b, 0, payload, n, options.clock + (uint32_t)(uint64_t)((rows[at].at + laps) * 1e6 + 0.5)))
            return false;
        *next += n;
        return true;
    }
    if (!*origin) *origin = wall() + 1;
    uint64_t device = (uint64_t)((double)(wall() - started) * (1 + options.drift * 1e-6));
    uint64_t begin = (uint64_t)((double)(*origin - started) * (1 + options.drift * 1e-6));
    uint64_t due = begin + (uint64_t)((rows[at].at + laps) * 1e6 + 0.5);
    if (device < due + (uint64_t)((n - 1) * 1e6 / options.rate)) return false;
    bridge_stream(b, 0, payload, n, options.clock + (uint32_t)due); /* best effort */
    *next += n;
    return true;
}

int main(int count, char **argument) {
    arguments = argument;
    parse(count, argument);
    started = filled = wall();
    if (!row_count) return 2;
    bridge_channel imu = {"imu", "raw", options.f32 ? BRIDGE_TYPE_F32 : BRIDGE_TYPE_I16, columns,
                          (uint32_t)lround(options.rate * 1000), options.f32 ? 1.0f : (float)options.scale};
    if (options.f32) options.scale = 1;
    fcntl(0, F_SETFL, O_NONBLOCK);
    fcntl(1, F_SETFL, O_NONBLOCK);
    bridge_port port = {uart, now, set_baud, NULL, NULL};
    app_board board = {effect, reset};
    bridge_identity identity = {options.device, options.boot, 0x010000};
    if (!app_init(&firmware, port, board, imu, identity, retained(), options.baud)) return 4;
    set_baud(NULL, options.baud);
    size_t next = 0;
    uint64_t origin = 0;
    for (;;) {
        uint8_t bytes[256];
        ssize_t got;
        struct pollfd wait = {0, POLLIN, 0};
        poll(&wait, 1, 1);
        while ((got = read(0, bytes, sizeof bytes)) > 0) bridge_receive(&firmware.link, bytes, (size_t)got);
        if (got == 0) return 0;
        while (produce(&next, &origin)) app_poll(&firmware);
        app_poll(&firmware);
    }
}
