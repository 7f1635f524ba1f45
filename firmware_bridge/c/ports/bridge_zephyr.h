/* Zephyr: add the bridge*.c files to the application and include this file once. Needs CONFIG_SERIAL,
 * CONFIG_UART_INTERRUPT_DRIVEN, CONFIG_RING_BUFFER and CONFIG_HWINFO. The interrupt only fills and empties two rings.
 *
 *     bridge_zephyr_begin(DEVICE_DT_GET(DT_CHOSEN(zephyr_console)), 921600, channels, 1, NULL);
 *     for (;;) { bridge_zephyr_poll(); k_usleep(500); }
 */
#ifndef BRIDGE_ZEPHYR_H
#define BRIDGE_ZEPHYR_H

#include <zephyr/drivers/hwinfo.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>
#include <zephyr/random/random.h>
#include <zephyr/sys/ring_buffer.h>

#include "bridge.h"

RING_BUF_DECLARE(bridge_zephyr_in, 256);
RING_BUF_DECLARE(bridge_zephyr_out, 256);

static struct {
    bridge link;
    bridge_port port;
    const struct device *uart;
} bridge_zephyr;
static __noinit bridge_retained bridge_zephyr_retained;

static void bridge_zephyr_interrupt(const struct device *uart, void *user) {
    uint8_t bytes[32];
    (void)user;
    while (uart_irq_update(uart) && uart_irq_is_pending(uart)) {
        if (uart_irq_rx_ready(uart)) {
            int got = uart_fifo_read(uart, bytes, sizeof bytes);
            if (got > 0) ring_buf_put(&bridge_zephyr_in, bytes, (uint32_t)got); /* bytes that do not fit are lost */
        }
        if (uart_irq_tx_ready(uart)) {
            uint8_t *next;
            uint32_t count = ring_buf_get_claim(&bridge_zephyr_out, &next, sizeof bytes);
            int sent = count ? uart_fifo_fill(uart, next, (int)count) : 0;
            ring_buf_get_finish(&bridge_zephyr_out, sent > 0 ? (uint32_t)sent : 0);
            if (!count) uart_irq_tx_disable(uart);
        }
    }
}

static size_t bridge_zephyr_write(void *board, const uint8_t *bytes, size_t count) {
    (void)board;
    size_t taken = ring_buf_put(&bridge_zephyr_out, bytes, (uint32_t)count);
    if (taken) uart_irq_tx_enable(bridge_zephyr.uart);
    return taken;
}

static uint32_t bridge_zephyr_now(void *board) {
    (void)board;
    return (uint32_t)k_ticks_to_us_floor64((uint64_t)k_uptime_ticks());
}

static bool bridge_zephyr_set_baud(void *board, uint32_t baud) {
    struct uart_config config;
    (void)board;
    while (!ring_buf_is_empty(&bridge_zephyr_out)) k_usleep(200);
    k_usleep(2000); /* let the hardware buffer drain */
    if (uart_config_get(bridge_zephyr.uart, &config)) return false;
    config.baudrate = baud;
    return uart_configure(bridge_zephyr.uart, &config) == 0;
}

/* command: as in bridge.h, or NULL. */
static inline bool bridge_zephyr_begin(const struct device *uart, uint32_t baud, const bridge_channel *channels,
                                       uint8_t count,
                                       uint8_t (*command)(void *, uint8_t, const uint8_t *, uint8_t, uint8_t *,
                                                          uint8_t *)) {
    bridge_identity identity = {0, sys_rand32_get(), 0x010000};
    hwinfo_get_device_id((uint8_t *)&identity.device, sizeof identity.device);
    bridge_zephyr.uart = uart;
    bridge_zephyr.port.write = bridge_zephyr_write;
    bridge_zephyr.port.now = bridge_zephyr_now;
    bridge_zephyr.port.set_baud = bridge_zephyr_set_baud;
    bridge_zephyr.port.command = command;
    uart_irq_callback_user_data_set(uart, bridge_zephyr_interrupt, NULL);
    uart_irq_rx_enable(uart);
    return bridge_init(&bridge_zephyr.link, &bridge_zephyr.port, identity, channels, count, &bridge_zephyr_retained,
                       baud);
}

static inline void bridge_zephyr_poll(void) {
    uint8_t bytes[64];
    uint32_t got;
    while ((got = ring_buf_get(&bridge_zephyr_in, bytes, sizeof bytes)) > 0)
        bridge_receive(&bridge_zephyr.link, bytes, got);
    bridge_poll(&bridge_zephyr.link);
}

#endif
