/* Arduino: copy the bridge*.h and bridge*.c files next to the sketch and include this file. `Serial` is the wire.
 *
 *     #include "bridge_arduino.h"
 *     static const bridge_channel channels[] = {{"imu", "m/s^2", BRIDGE_TYPE_I16, 6, 1000000, 0.001f}};
 *     void setup() { bridge_arduino_begin(Serial, 921600, 0x1234, channels, 1, NULL); }
 *     void loop() {
 *         bridge_arduino_poll();
 *         // int16_t samples[8 * 6]: bridge_stream(&bridge_arduino.link, 0, samples, 8, micros_of_the_first);
 *     }
 */
#ifndef BRIDGE_ARDUINO_H
#define BRIDGE_ARDUINO_H

#include <Arduino.h>

#include "bridge.h"

static struct {
    bridge link;
    bridge_port port;
    HardwareSerial *serial;
} bridge_arduino;

/* AVR and ARM cores keep .noinit over a reset; without such a section it is cleared, and the host will know. */
static bridge_retained bridge_arduino_retained __attribute__((section(".noinit")));
static uint32_t bridge_arduino_boots __attribute__((section(".noinit")));

static size_t bridge_arduino_write(void *board, const uint8_t *bytes, size_t count) {
    (void)board;
    size_t room = (size_t)bridge_arduino.serial->availableForWrite();
    return bridge_arduino.serial->write(bytes, count < room ? count : room);
}

static uint32_t bridge_arduino_now(void *board) {
    (void)board;
    return micros();
}

static bool bridge_arduino_set_baud(void *board, uint32_t baud) {
    (void)board;
    bridge_arduino.serial->flush();
    bridge_arduino.serial->end();
    bridge_arduino.serial->begin(baud);
    return true;
}

/* device: a number of this board; command: as in bridge.h, or NULL. */
static inline bool bridge_arduino_begin(HardwareSerial &serial, uint32_t baud, uint64_t device,
                                        const bridge_channel *channels, uint8_t count,
                                        uint8_t (*command)(void *, uint8_t, const uint8_t *, uint8_t, uint8_t *,
                                                           uint8_t *)) {
    bridge_identity identity = {device, (uint32_t)(++bridge_arduino_boots ^ micros() << 8), 0x010000};
    serial.begin(baud);
    bridge_arduino.serial = &serial;
    bridge_arduino.port.write = bridge_arduino_write;
    bridge_arduino.port.now = bridge_arduino_now;
    bridge_arduino.port.set_baud = bridge_arduino_set_baud;
    bridge_arduino.port.command = command;
    return bridge_init(&bridge_arduino.link, &bridge_arduino.port, identity, channels, count,
                       &bridge_arduino_retained, baud);
}

static inline void bridge_arduino_poll(void) {
    while (bridge_arduino.serial->available() > 0) {
        uint8_t byte = (uint8_t)bridge_arduino.serial->read();
        bridge_receive(&bridge_arduino.link, &byte, 1);
    }
    bridge_poll(&bridge_arduino.link);
}

#endif
