/* Turns bytes into frames: COBS, CRC-32, limits. The only state is the decoder that is passed in. */
#include "bridge_internal.h"

static const uint32_t RESIDUE = 0x2144DF1C; /* the CRC-32 of any data that end with their own CRC-32 */

uint32_t bridge_crc_byte(uint32_t crc, uint8_t byte) {
    static const uint32_t nibbles[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    crc ^= byte;
    crc = (crc >> 4) ^ nibbles[crc & 15];
    return (crc >> 4) ^ nibbles[crc & 15];
}

uint32_t bridge_crc32(uint32_t seed, const uint8_t *bytes, size_t count) {
    uint32_t crc = ~seed;
    while (count--) crc = bridge_crc_byte(crc, *bytes++);
    return ~crc;
}

static bridge_verdict judge(const bridge_decoder *d) {
    if (d->encoded > BRIDGE_ENCODED(d->limit)) return BRIDGE_OVERSIZE;
    if (d->left) return BRIDGE_MALFORMED;
    if (d->size > d->limit) return BRIDGE_OVERSIZE;
    if (d->size < OVERHEAD) return BRIDGE_TOO_SHORT;
    if (d->frame[1] >= d->seed_count) return BRIDGE_CHANNEL;
    if (bridge_crc32(d->seeds[d->frame[1]], d->frame, d->size) != RESIDUE) return BRIDGE_CORRUPT;
    uint8_t version = d->frame[0] >> 4;
    return version < BRIDGE_VERSION_LEAST || version > BRIDGE_VERSION_MOST ? BRIDGE_VERSION : BRIDGE_ACCEPTED;
}

static void keep(bridge_decoder *d, uint8_t byte) {
    if (d->size < d->limit) d->frame[d->size] = byte;
    d->size++;
}

bridge_verdict bridge_decode(bridge_decoder *d, uint8_t byte) {
    if (byte == 0) {
        bridge_verdict verdict = BRIDGE_NOTHING;
        if (d->encoded) d->counts[verdict = judge(d)]++;
        d->encoded = d->left = 0;
        return verdict;
    }
    if (d->encoded > BRIDGE_ENCODED(d->limit)) return BRIDGE_NOTHING;
    if (d->encoded++ == 0) {
        d->size = 0;
    } else if (d->left) {
        d->left--;
        keep(d, byte);
        return BRIDGE_NOTHING;
    } else if (d->code != 0xFF) {
        keep(d, 0);
    }
    d->code = byte;
    d->left = (uint8_t)(byte - 1);
    return BRIDGE_NOTHING;
}
