/* Turns frames into bytes: a frame is encoded while it is written into tx, and becomes valid when it is closed. */
#include "bridge_internal.h"

static void raw(bridge *b, uint8_t byte) { /* COBS; the byte after a full block closes it */
    if (b->code == 0xFF) {
        b->tx[b->tx_code] = b->code;
        b->tx_code = b->tx_open++;
        b->code = 1;
    }
    if (byte) {
        b->tx[b->tx_open++] = byte;
        b->code++;
    } else {
        b->tx[b->tx_code] = b->code;
        b->tx_code = b->tx_open++;
        b->code = 1;
    }
}

static void put_byte(bridge *b, uint8_t byte) {
    if (b->position >= b->from && b->position < b->to) {
        b->crc = bridge_crc_byte(b->crc, byte);
        raw(b, byte);
    } else if (b->to == 0) {
        b->object_crc = bridge_crc_byte(b->object_crc, byte);
    }
    b->position++;
}

void bridge_put(bridge *b, uint32_t value, uint8_t size) {
    for (; size; size--, value >>= 8) put_byte(b, (uint8_t)value);
}

void bridge_put_bytes(bridge *b, const void *bytes, size_t size) {
    const uint8_t *byte = bytes;
    while (size--) put_byte(b, *byte++);
}

void bridge_put_f32(bridge *b, float value) {
    union { float number; uint32_t bits; } cast;
    cast.number = value;
    bridge_put(b, cast.bits, 4);
}

bool bridge_open_frame(bridge *b, uint8_t channel, uint8_t flags, uint16_t sequence, uint32_t time, size_t payload,
                       size_t reserve) {
    if (b->tx_start) {
        for (uint16_t i = b->tx_start; i < b->tx_end; i++) b->tx[i - b->tx_start] = b->tx[i];
        b->tx_end = (uint16_t)(b->tx_end - b->tx_start);
        b->tx_start = 0;
    }
    if (b->tx_end + BRIDGE_ENCODED(OVERHEAD + payload) + 1 + reserve > BRIDGE_TX_BYTES) {
        b->dropped++;
        return false;
    }
    b->tx_code = b->tx_end;
    b->tx_open = (uint16_t)(b->tx_end + 1);
    b->code = 1;
    b->crc = ~b->seeds[channel];
    b->position = b->from = 0;
    b->to = UINT32_MAX;
    bridge_put(b, (uint32_t)(BRIDGE_VERSION_MOST << 4 | flags), 1);
    bridge_put(b, channel, 1);
    bridge_put(b, sequence, 2);
    bridge_put(b, time, 4);
    return true;
}

void bridge_close_frame(bridge *b) {
    uint32_t crc = ~b->crc;
    b->from = 0;
    b->to = UINT32_MAX;
    bridge_put(b, crc, CRC_SIZE);
    b->tx[b->tx_code] = b->code;
    b->tx[b->tx_open++] = 0;
    b->tx_end = b->tx_open;
    b->sent++;
}
