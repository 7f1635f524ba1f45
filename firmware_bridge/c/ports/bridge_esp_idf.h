/* ESP-IDF: add the bridge*.c files to a component and include this file once. Uses the rings of the UART driver.
 *
 *     bridge_esp_begin(UART_NUM_0, 921600, channels, 1, NULL);
 *     for (;;) { bridge_esp_poll(); vTaskDelay(1); }
 */
#ifndef BRIDGE_ESP_IDF_H
#define BRIDGE_ESP_IDF_H

#include "bridge.h"
#include "driver/uart.h"
#include "esp_attr.h"
#include "esp_mac.h"
#include "esp_random.h"
#include "esp_timer.h"

static struct {
    bridge link;
    bridge_port port;
    uart_port_t uart;
} bridge_esp;
static RTC_NOINIT_ATTR bridge_retained bridge_esp_retained;

static size_t bridge_esp_write(void *board, const uint8_t *bytes, size_t count) {
    size_t room = 0;
    (void)board;
    if (uart_get_tx_buffer_free_size(bridge_esp.uart, &room) != ESP_OK) return 0;
    int done = uart_write_bytes(bridge_esp.uart, bytes, count < room ? count : room);
    return done > 0 ? (size_t)done : 0;
}

static uint32_t bridge_esp_now(void *board) {
    (void)board;
    return (uint32_t)esp_timer_get_time();
}

static bool bridge_esp_set_baud(void *board, uint32_t baud) {
    (void)board;
    uart_wait_tx_done(bridge_esp.uart, 100);
    return uart_set_baudrate(bridge_esp.uart, baud) == ESP_OK;
}

/* command: as in bridge.h, or NULL. The device id is the MAC address. */
static inline bool bridge_esp_begin(uart_port_t uart, uint32_t baud, const bridge_channel *channels, uint8_t count,
                                    uint8_t (*command)(void *, uint8_t, const uint8_t *, uint8_t, uint8_t *,
                                                       uint8_t *)) {
    uart_config_t config = {0};
    bridge_identity identity = {0, esp_random(), 0x010000};
    config.baud_rate = (int)baud;
    config.data_bits = UART_DATA_8_BITS;
    config.stop_bits = UART_STOP_BITS_1;
    esp_read_mac((uint8_t *)&identity.device, ESP_MAC_WIFI_STA);
    if (uart_driver_install(uart, 1024, 1024, 0, NULL, 0) != ESP_OK || uart_param_config(uart, &config) != ESP_OK)
        return false;
    bridge_esp.uart = uart;
    bridge_esp.port.write = bridge_esp_write;
    bridge_esp.port.now = bridge_esp_now;
    bridge_esp.port.set_baud = bridge_esp_set_baud;
    bridge_esp.port.command = command;
    return bridge_init(&bridge_esp.link, &bridge_esp.port, identity, channels, count, &bridge_esp_retained, baud);
}

static inline void bridge_esp_poll(void) {
    uint8_t bytes[128];
    int got;
    while ((got = uart_read_bytes(bridge_esp.uart, bytes, sizeof bytes, 0)) > 0)
        bridge_receive(&bridge_esp.link, bytes, (size_t)got);
    bridge_poll(&bridge_esp.link);
}

#endif
