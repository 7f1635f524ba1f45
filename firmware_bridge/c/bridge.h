/* The device side of the edgecl bridge, see ../PROTOCOL.md. C99, no malloc, no library, one instance per wire.
 *
 *     bridge_init once; then in the main loop bridge_receive what came in, bridge_stream the samples, bridge_poll.
 *
 * All calls must come from one context. An interrupt may only fill a ring that the main loop passes to bridge_receive.
 */
#ifndef BRIDGE_H
#define BRIDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bridge_schema.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef BRIDGE_FRAME_MOST
#define BRIDGE_FRAME_MOST 256 /* bytes of the largest frame, BRIDGE_FRAME_LEAST to BRIDGE_FRAME_LIMIT */
#endif
#ifndef BRIDGE_TX_BYTES
#define BRIDGE_TX_BYTES 768 /* encoded frames waiting for the wire; at least two of the largest */
#endif
#ifndef BRIDGE_CHANNELS
#define BRIDGE_CHANNELS 4 /* rows of the channel table, at most BRIDGE_TABLE_LIMIT */
#endif

/* COBS adds a byte for each started block of 254. */
#define BRIDGE_ENCODED(size) ((size) + (size) / 254 + 1)

#define BRIDGE_FIELD_u8(name) uint8_t name;
#define BRIDGE_FIELD_u16(name) uint16_t name;
#define BRIDGE_FIELD_u32(name) uint32_t name;
#define BRIDGE_FIELD_u64(name) uint64_t name;
#define BRIDGE_FIELD_f32(name) float name;
#define BRIDGE_FIELD(type, name) BRIDGE_FIELD_##type(name)

/* The fate of a frame. */
typedef enum {
    BRIDGE_NOTHING = -1, /* no frame has ended yet */
    BRIDGE_ACCEPTED, BRIDGE_MALFORMED, BRIDGE_OVERSIZE, BRIDGE_TOO_SHORT, BRIDGE_CHANNEL, BRIDGE_CORRUPT, BRIDGE_VERSION,
    BRIDGE_VERDICTS
} bridge_verdict;

/* Turns bytes into frames. frame: limit bytes; seeds: of channels 0 to seed_count - 1; size: of an accepted frame,
 * including header and CRC. */
typedef struct {
    uint8_t *frame;
    const uint32_t *seeds;
    uint16_t limit, size, encoded;
    uint8_t seed_count, code, left;
    uint32_t counts[BRIDGE_VERDICTS];
} bridge_decoder;

bridge_verdict bridge_decode(bridge_decoder *decoder, uint8_t byte);
uint32_t bridge_crc32(uint32_t seed, const uint8_t *bytes, size_t count);

/* One row of the channel table. elements: values per sample; scale: a value times scale is in unit; millihertz: 0 if
 * samples are irregular; name, unit: UTF-8. */
typedef struct {
    const char *name, *unit;
    uint8_t type, elements;
    uint32_t millihertz;
    float scale;
} bridge_channel;

/* What the board provides. write: takes up to count bytes without waiting, returns how many; now: microseconds, wraps;
 * set_baud: waits until all written bytes are sent, then switches; false if it can't; NULL if the wire has no rate;
 * command: runs one of the board's own commands, from BRIDGE_COMMAND_FIRST up; sets up to BRIDGE_DATA_LIMIT bytes of
 * data and returns a status. */
typedef struct {
    size_t (*write)(void *board, const uint8_t *bytes, size_t count);
    uint32_t (*now)(void *board);
    bool (*set_baud)(void *board, uint32_t baud);
    uint8_t (*command)(void *board, uint8_t command, const uint8_t *arguments, uint8_t size, uint8_t *data,
                       uint8_t *data_size);
    void *board;
} bridge_port;

/* The identity of the device. boot: a different number at each start; firmware: major << 16 | minor << 8 | patch. */
typedef struct {
    uint64_t device;
    uint32_t boot, firmware;
} bridge_identity;

/* Put it in memory that survives a reset (.noinit), so that no command runs twice. Any content will do at power-up. */
typedef struct {
    uint32_t magic, session, boot; /* boot: in which the session began */
    volatile uint16_t begun, next; /* begun != next: a command was running */
    struct {
        uint8_t status, size, data[BRIDGE_DATA_LIMIT];
    } results[BRIDGE_WINDOW];
} bridge_retained;

typedef struct {
    const bridge_port *port;
    const bridge_channel *channels;
    bridge_retained *retained;
    bridge_identity identity;
    bridge_decoder decoder;
    uint32_t seeds[BRIDGE_CHANNEL_FIRST + BRIDGE_CHANNELS];
    uint32_t sent, dropped, starved, executed, duplicates, heard, announced, baud, baud_first, baud_before, baud_since, crc, object_crc;
    uint32_t from, to, position; /* the part of the current message that goes into this frame */
    uint16_t frame_most, link_sequence, tx_start, tx_end, tx_open, tx_code;
    uint8_t channel_count, code, held;
    bool greeted, baud_pending, baud_trial;
    struct {
        uint32_t asked;
        uint16_t sequence, limit;
        bool granted, starved; /* the host wants the channel; no credit is left */
    } streams[BRIDGE_CHANNELS];
    struct {
        uint8_t size, bytes[1 + BRIDGE_ARGUMENT_LIMIT];
    } waiting[BRIDGE_WINDOW];
    uint8_t rx[BRIDGE_FRAME_MOST];
    uint8_t tx[BRIDGE_TX_BYTES];
} bridge;

/* Bytes of any length on a channel of type BRIDGE_TYPE_OBJECT; the board keeps them until they are sent. */
typedef struct {
    const uint8_t *bytes;
    uint32_t size, sent, crc;
    uint8_t index; /* of the channel in the table */
} bridge_object;

/* baud: the current rate of the wire. channels, port and retained must stay valid. False if a limit is exceeded. */
bool bridge_init(bridge *b, const bridge_port *port, bridge_identity identity, const bridge_channel *channels,
                 uint8_t channel_count, bridge_retained *retained, uint32_t baud);

void bridge_receive(bridge *b, const uint8_t *bytes, size_t count);
void bridge_poll(bridge *b);

/* Sends successive samples at the channel's rate, the first at `time`, in one frame. index: the row in the table. False
 * if they were not sent, for want of a host, credit or room: best effort, so the caller drops the samples. */
bool bridge_stream(bridge *b, uint8_t index, const void *samples, uint8_t count, uint32_t time);

/* The most samples that fit into one frame of the channel with the current host. */
uint8_t bridge_stream_most(const bridge *b, uint8_t index);

/* Sends as many fragments as there is room for. True once all are sent; call again until then. */
bool bridge_object_send(bridge *b, bridge_object *object);

#ifdef __cplusplus
}
#endif
#endif
