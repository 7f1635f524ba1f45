/* Shared by the bridge*.c files, not for boards. */
#ifndef BRIDGE_INTERNAL_H
#define BRIDGE_INTERNAL_H

#include "bridge.h"

#define SIZE_u8 1
#define SIZE_u16 2
#define SIZE_u32 4
#define SIZE_u64 8
#define SIZE_f32 4
#define PLUS(type, name) +SIZE_##type
#define SIZE(fields) (0 fields(PLUS))

enum { CRC_SIZE = 4, HEADER = SIZE(BRIDGE_FIELDS_HEADER), OVERHEAD = HEADER + CRC_SIZE };

uint32_t bridge_crc_byte(uint32_t crc, uint8_t byte);

/* A frame is opened, filled with put_*, and closed. False if there is no room; it then counts as dropped. */
bool bridge_open_frame(bridge *b, uint8_t channel, uint8_t flags, uint16_t sequence, uint32_t time, size_t payload,
                       size_t reserve);
void bridge_close_frame(bridge *b);
void bridge_put(bridge *b, uint32_t value, uint8_t size);
void bridge_put_bytes(bridge *b, const void *bytes, size_t size);
void bridge_put_f32(bridge *b, float value);

#endif
