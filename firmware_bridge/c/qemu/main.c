/* The example firmware on QEMU's mps2-an385, without any library: UART0 is the wire, SysTick the clock.
 *
 *     qemu-system-arm -M mps2-an385 -nographic -monitor none -kernel FIRMWARE -serial unix:/tmp/board,server=on,wait=off
 */
#include "../app.h"

extern uint32_t data_begin, data_end, data_load, bss_begin, bss_end, stack_top;
void start(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define UART(offset) REGISTER(0x40004000u + (offset)) /* CMSDK APB UART: 0 data, 4 state, 8 control, 16 divider */
#define SYSTICK(offset) REGISTER(0xE000E010u + (offset))
enum { TX_FULL = 1, RX_FULL = 2, CLOCK_HZ = 25000000, RELOAD = 0xFFFFFF, RATE = 100, BATCH = 5 };

static app firmware;
static struct {
    bridge_retained link;
    uint32_t boots, effects, magic;
} kept __attribute__((section(".noinit")));

static void halt(void) {
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const struct {
    const uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {&stack_top, {start, halt, halt}};

static uint32_t now(void *board) { /* called at least every 0.67 s, before SysTick wraps */
    static uint32_t last = RELOAD, ticks, micros;
    (void)board;
    uint32_t count = SYSTICK(8);
    ticks += (last - count) & RELOAD;
    last = count;
    micros += ticks / (CLOCK_HZ / 1000000);
    ticks %= CLOCK_HZ / 1000000;
    return micros;
}

static size_t uart(void *board, const uint8_t *bytes, size_t count) {
    size_t done = 0;
    (void)board;
    for (; done < count && !(UART(4) & TX_FULL); done++) UART(0) = bytes[done];
    return done;
}

static uint32_t effect(uint32_t argument) {
    (void)argument;
    return ++kept.effects;
}

static void reset(void) {
    REGISTER(0xE000ED0C) = 0x05FA0004;
    halt();
}

static void run(void) {
    SYSTICK(4) = RELOAD;
    SYSTICK(8) = 0;
    SYSTICK(0) = 5;
    UART(16) = 16;
    UART(8) = 3;
    if (kept.magic != 0x600DF00D) kept.boots = kept.effects = 0;
    kept.magic = 0x600DF00D;
    bridge_port port = {uart, now, NULL, NULL, NULL};
    bridge_channel imu = {"imu", "raw", BRIDGE_TYPE_I16, 6, RATE * 1000, 0.001f};
    bridge_identity identity = {0x385, ++kept.boots, 0x010000};
    app_board board = {effect, reset};
    if (!app_init(&firmware, port, board, imu, identity, &kept.link, 115200)) halt();
    int16_t samples[BATCH * 6];
    uint32_t due = now(NULL);
    uint16_t number = 0;
    for (;;) {
        while (UART(4) & RX_FULL) {
            uint8_t byte = (uint8_t)UART(0);
            bridge_receive(&firmware.link, &byte, 1);
        }
        if ((int32_t)(now(NULL) - due) >= BATCH * (1000000 / RATE)) {
            for (uint16_t i = 0; i < BATCH; i++)
                for (uint16_t c = 0; c < 6; c++) samples[i * 6 + c] = (int16_t)((number + i) % 1000 * (c + 1));
            bridge_stream(&firmware.link, 0, samples, BATCH, due);
            number = (uint16_t)((number + BATCH) % 1000);
            due += BATCH * (1000000 / RATE);
        }
        app_poll(&firmware);
    }
}

void start(void) {
    const uint32_t *from = &data_load;
    for (uint32_t *to = &data_begin; to < &data_end;) *to++ = *from++;
    for (uint32_t *to = &bss_begin; to < &bss_end;) *to++ = 0;
    run();
}

/* Functions that gcc calls even if no library is linked. */
void *memcpy(void *to, const void *from, size_t count) {
    uint8_t *t = to;
    const uint8_t *f = from;
    while (count--) *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t count) {
    uint8_t *t = to;
    while (count--) *t++ = (uint8_t)value;
    return to;
}
