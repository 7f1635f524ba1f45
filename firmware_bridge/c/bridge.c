/* The link: hello, credit, commands run once, time, baud. */
#include "bridge_internal.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "samples are sent as they are in memory: the bridge needs a little-endian processor"
#endif
#if BRIDGE_FRAME_MOST < BRIDGE_FRAME_LEAST || BRIDGE_FRAME_MOST > BRIDGE_FRAME_LIMIT
#error "BRIDGE_FRAME_MOST must be from BRIDGE_FRAME_LEAST to BRIDGE_FRAME_LIMIT"
#endif
#if BRIDGE_CHANNELS > BRIDGE_TABLE_LIMIT || BRIDGE_TX_BYTES < 2 * (BRIDGE_ENCODED(BRIDGE_FRAME_MOST) + 1)
#error "BRIDGE_CHANNELS is over BRIDGE_TABLE_LIMIT, or BRIDGE_TX_BYTES has no room for two frames"
#endif

#if defined(__GNUC__)
#define BARRIER() __asm__ volatile("" ::: "memory")
#else
#define BARRIER() ((void)0)
#endif

enum {
    RESERVE = 2 * BRIDGE_ENCODED(BRIDGE_FRAME_LEAST), /* the part of tx that streams leave to answers */
    RETAINED = 0x42524731,
};
static const uint8_t VALUE_SIZE[] = {0, 2, 4, 4, 1, 0}; /* by type; 0: not samples */

static uint32_t now(const bridge *b) { return b->port->now(b->port->board); }

static bool open_link(bridge *b, uint8_t flags, size_t payload) {
    if (!bridge_open_frame(b, BRIDGE_CHANNEL_LINK, flags, b->link_sequence, now(b), payload, 0)) return false;
    b->link_sequence++;
    return true;
}

#define PUT_u8(value) bridge_put(b, value, 1);
#define PUT_u16(value) bridge_put(b, value, 2);
#define PUT_u32(value) bridge_put(b, value, 4);
#define PUT_u64(value) bridge_put(b, (uint32_t)(value), 4); bridge_put(b, (uint32_t)((value) >> 32), 4);
#define PUT_f32(value) bridge_put_f32(b, value);
#define PUT(type, name) PUT_##type(m.name)
#define MESSAGE(fields) struct { fields(BRIDGE_FIELD) }

static uint8_t length(const char *text) {
    uint8_t size = 0;
    while (text[size]) size++;
    return size;
}

static void put_row(bridge *b, const bridge_channel *row) {
    MESSAGE(BRIDGE_FIELDS_CHANNEL) m = {row->type, row->elements, row->millihertz, row->scale, length(row->name),
                                       length(row->unit)};
    BRIDGE_FIELDS_CHANNEL(PUT)
    bridge_put_bytes(b, row->name, m.name_size);
    bridge_put_bytes(b, row->unit, m.unit_size);
}

static void put_hello(bridge *b, uint32_t nonce) {
    MESSAGE(BRIDGE_FIELDS_HELLO) m = {
        BRIDGE_MESSAGE_HELLO, BRIDGE_VERSION_LEAST, BRIDGE_VERSION_MOST, BRIDGE_SCHEMA_HASH, b->identity.device,
        b->identity.boot, b->identity.firmware, BRIDGE_FRAME_MOST, BRIDGE_FRAME_MOST, nonce, b->retained->session,
        b->retained->boot, b->retained->next, b->channel_count};
    BRIDGE_FIELDS_HELLO(PUT)
    for (uint8_t i = 0; i < b->channel_count; i++) put_row(b, &b->channels[i]);
}


static void hello(bridge *b, uint32_t nonce) {
    b->announced = now(b);
    b->position = b->from = b->to = 0; /* writes nothing, only computes size and CRC */
    b->object_crc = UINT32_MAX;
    put_hello(b, nonce);
    uint32_t crc = ~b->object_crc, size = b->position, most = (uint32_t)b->frame_most - OVERHEAD;
    uint32_t total = size > most ? size + CRC_SIZE : size;
    for (uint32_t at = 0; at < total; at += most) {
        uint32_t piece = total - at < most ? total - at : most;
        uint8_t flags = (uint8_t)((at ? BRIDGE_FLAG_CONTINUED : 0) | (at + piece < total ? BRIDGE_FLAG_MORE : 0));
        if (!open_link(b, flags, piece)) return;
        b->position = 0;
        b->from = at;
        b->to = at + piece;
        put_hello(b, nonce);
        bridge_put(b, crc, CRC_SIZE);
        bridge_close_frame(b);
    }
}

static void send_time(bridge *b, uint64_t asked, uint32_t received) {
    MESSAGE(BRIDGE_FIELDS_TIME) m = {BRIDGE_MESSAGE_TIME, asked, received, now(b)};
    if (!open_link(b, 0, SIZE(BRIDGE_FIELDS_TIME))) return;
    BRIDGE_FIELDS_TIME(PUT)
    bridge_close_frame(b);
}

static void send_stats(bridge *b) {
    const uint32_t *counts = b->decoder.counts;
    MESSAGE(BRIDGE_FIELDS_STATS) m = {
        BRIDGE_MESSAGE_STATS, counts[BRIDGE_ACCEPTED], counts[BRIDGE_MALFORMED], counts[BRIDGE_OVERSIZE],
        counts[BRIDGE_TOO_SHORT], counts[BRIDGE_CHANNEL], counts[BRIDGE_CORRUPT], counts[BRIDGE_VERSION], b->sent,
        b->dropped, b->starved, b->executed, b->duplicates};
    if (!open_link(b, 0, SIZE(BRIDGE_FIELDS_STATS))) return;
    BRIDGE_FIELDS_STATS(PUT)
    bridge_close_frame(b);
}

static void send_ack(bridge *b) {
    MESSAGE(BRIDGE_FIELDS_ACK) m = {BRIDGE_MESSAGE_ACK, b->retained->next, b->held};
    if (!open_link(b, 0, SIZE(BRIDGE_FIELDS_ACK))) return;
    BRIDGE_FIELDS_ACK(PUT)
    bridge_close_frame(b);
}

static void send_result(bridge *b, uint16_t sequence) {
    uint8_t slot = sequence % BRIDGE_WINDOW, size = b->retained->results[slot].size;
    MESSAGE(BRIDGE_FIELDS_RESULT) m = {b->retained->next, b->held, b->retained->results[slot].status};
    if (!bridge_open_frame(b, BRIDGE_CHANNEL_COMMAND, 0, sequence, now(b), SIZE(BRIDGE_FIELDS_RESULT) + (size_t)size, 0))
        return;
    BRIDGE_FIELDS_RESULT(PUT)
    bridge_put_bytes(b, b->retained->results[slot].data, size);
    bridge_close_frame(b);
}

static void ask_credit(bridge *b, uint8_t index) {
    MESSAGE(BRIDGE_FIELDS_CREDIT_ASK) m = {BRIDGE_MESSAGE_CREDIT_ASK, (uint8_t)(BRIDGE_CHANNEL_FIRST + index),
                                          b->streams[index].sequence};
    b->streams[index].asked = now(b);
    if (!open_link(b, 0, SIZE(BRIDGE_FIELDS_CREDIT_ASK))) return;
    BRIDGE_FIELDS_CREDIT_ASK(PUT)
    bridge_close_frame(b);
}

/* commands ---------------------------------------------------------------------------------------------------------- */

static uint8_t run(bridge *b, uint8_t command, const uint8_t *arguments, uint8_t size, uint8_t *data,
                   uint8_t *data_size) {
    if (command == BRIDGE_COMMAND_ECHO) {
        for (*data_size = 0; *data_size < size; ++*data_size) data[*data_size] = arguments[*data_size];
        return BRIDGE_STATUS_OK;
    }
    if (command == BRIDGE_COMMAND_BAUD) {
        if (size != 4 || !b->port->set_baud) return BRIDGE_STATUS_REFUSED;
        b->baud_before = b->baud;
        b->baud = arguments[0] | (uint32_t)arguments[1] << 8 | (uint32_t)arguments[2] << 16 |
                  (uint32_t)arguments[3] << 24;
        b->baud_pending = true;
        return BRIDGE_STATUS_OK;
    }
    if (command < BRIDGE_COMMAND_FIRST || !b->port->command) return BRIDGE_STATUS_UNKNOWN;
    return b->port->command(b->port->board, command, arguments, size, data, data_size);
}

static void execute(bridge *b, const uint8_t *payload, uint8_t size) {
    bridge_retained *kept = b->retained;
    uint16_t sequence = kept->next, after = (uint16_t)(sequence + 1);
    uint8_t slot = sequence % BRIDGE_WINDOW, data_size = 0;
    kept->results[slot].status = BRIDGE_STATUS_INTERRUPTED;
    kept->results[slot].size = 0;
    BARRIER();
    kept->begun = after;
    BARRIER();
    uint8_t status = run(b, payload[0], payload + 1, (uint8_t)(size - 1), kept->results[slot].data, &data_size);
    kept->results[slot].status = status;
    kept->results[slot].size = data_size < BRIDGE_DATA_LIMIT ? data_size : BRIDGE_DATA_LIMIT;
    BARRIER();
    kept->next = after;
    b->held >>= 1;
    b->executed++;
    send_result(b, sequence);
}

static void on_command(bridge *b, uint16_t sequence, const uint8_t *payload, size_t size) {
    uint16_t ahead = (uint16_t)(sequence - b->retained->next), behind = (uint16_t)(b->retained->next - sequence);
    if (size < 1 || size > 1 + BRIDGE_ARGUMENT_LIMIT) return;
    if (ahead == 0) {
        bool more;
        execute(b, payload, (uint8_t)size);
        do { /* the bit that was just shifted out says whether the next one is held */
            uint8_t slot = b->retained->next % BRIDGE_WINDOW;
            more = b->waiting[slot].size != 0;
            if (more) {
                uint8_t waited = b->waiting[slot].size;
                b->waiting[slot].size = 0;
                execute(b, b->waiting[slot].bytes, waited);
            }
        } while (more);
    } else if (ahead < BRIDGE_WINDOW) {
        uint8_t slot = sequence % BRIDGE_WINDOW;
        if (b->waiting[slot].size) b->duplicates++;
        b->waiting[slot].size = (uint8_t)size;
        for (size_t i = 0; i < size; i++) b->waiting[slot].bytes[i] = payload[i];
        b->held |= (uint8_t)(1u << (ahead - 1));
        send_ack(b);
    } else if (behind <= BRIDGE_WINDOW) {
        b->duplicates++;
        send_result(b, sequence);
    }
}

/* messages ---------------------------------------------------------------------------------------------------------- */

static uint32_t get(const uint8_t *bytes, uint8_t size) {
    uint32_t value = 0;
    while (size--) value = value << 8 | bytes[size];
    return value;
}

#define GET_u8 (uint8_t)get(p, 1)
#define GET_u16 (uint16_t)get(p, 2)
#define GET_u32 get(p, 4)
#define GET_u64 (get(p, 4) | (uint64_t)get(p + 4, 4) << 32)
#define GET(type, name) m.name = GET_##type; p += SIZE_##type;

static void begin_session(bridge *b, uint32_t session) {
    bridge_retained *kept = b->retained;
    if (b->greeted && kept->session == session) return;
    b->greeted = true;
    b->held = 0;
    for (uint8_t i = 0; i < BRIDGE_WINDOW; i++) b->waiting[i].size = 0;
    for (uint8_t i = 0; i < b->channel_count; i++) b->streams[i].granted = b->streams[i].starved = false;
    if (kept->magic == RETAINED && kept->session == session) return;
    kept->magic = 0; /* a reset between these lines leaves no session instead of half a session */
    BARRIER();
    kept->session = session;
    kept->boot = b->identity.boot;
    kept->begun = kept->next = 0;
    for (uint8_t i = 0; i < BRIDGE_WINDOW; i++) kept->results[i].size = 0;
    BARRIER();
    kept->magic = RETAINED;
}

static void on_hello_ask(bridge *b, const uint8_t *p) {
    MESSAGE(BRIDGE_FIELDS_HELLO_ASK) m;
    BRIDGE_FIELDS_HELLO_ASK(GET)
    b->frame_most = BRIDGE_FRAME_MOST;
    if (m.frame_most >= BRIDGE_FRAME_LEAST && m.frame_most < BRIDGE_FRAME_MOST) b->frame_most = m.frame_most;
    if (m.version_least <= BRIDGE_VERSION_MOST && m.version_most >= BRIDGE_VERSION_LEAST) begin_session(b, m.session);
    hello(b, m.nonce);
}

static void on_credit(bridge *b, const uint8_t *p) {
    MESSAGE(BRIDGE_FIELDS_CREDIT) m;
    BRIDGE_FIELDS_CREDIT(GET)
    uint8_t index = (uint8_t)(m.channel - BRIDGE_CHANNEL_FIRST);
    if (index < b->channel_count) {
        b->streams[index].limit = m.limit;
        b->streams[index].granted = true;
        b->streams[index].starved = false;
    }
}

static void on_link(bridge *b, const uint8_t *payload, size_t size) {
    const uint8_t *p = payload;
    uint8_t message = size ? payload[0] : 0;
    if (message == BRIDGE_MESSAGE_HELLO_ASK && size == SIZE(BRIDGE_FIELDS_HELLO_ASK)) {
        on_hello_ask(b, payload);
    } else if (!b->greeted) {
        return;
    } else if (message == BRIDGE_MESSAGE_CREDIT && size == SIZE(BRIDGE_FIELDS_CREDIT)) {
        on_credit(b, payload);
    } else if (message == BRIDGE_MESSAGE_TIME_ASK && size == SIZE(BRIDGE_FIELDS_TIME_ASK)) {
        MESSAGE(BRIDGE_FIELDS_TIME_ASK) m;
        BRIDGE_FIELDS_TIME_ASK(GET)
        send_time(b, m.asked, b->heard);
    } else if (message == BRIDGE_MESSAGE_STATS_ASK && size == SIZE(BRIDGE_FIELDS_STATS_ASK)) {
        send_stats(b);
    }
}

static void on_frame(bridge *b, const uint8_t *frame, uint16_t size) {
    const uint8_t *p = frame;
    MESSAGE(BRIDGE_FIELDS_HEADER) m;
    BRIDGE_FIELDS_HEADER(GET)
    b->heard = now(b);
    b->baud_trial = false;
    if (m.version_flags & (BRIDGE_FLAG_MORE | BRIDGE_FLAG_CONTINUED)) return; /* a host sends no fragments */
    if (m.channel == BRIDGE_CHANNEL_LINK) {
        on_link(b, p, (size_t)(size - OVERHEAD));
    } else if (m.channel == BRIDGE_CHANNEL_COMMAND && b->greeted) {
        on_command(b, m.sequence, p, (size_t)(size - OVERHEAD));
    }
}

/* functions for the board ------------------------------------------------------------------------------------------ */

bool bridge_init(bridge *b, const bridge_port *port, bridge_identity identity, const bridge_channel *channels,
                 uint8_t channel_count, bridge_retained *retained, uint32_t baud) {
    uint8_t *byte = (uint8_t *)b;
    for (size_t i = 0; i < sizeof *b; i++) byte[i] = 0;
    if (channel_count > BRIDGE_CHANNELS) return false;
    b->port = port;
    b->identity = identity;
    b->channels = channels;
    b->channel_count = channel_count;
    b->retained = retained;
    b->baud = b->baud_first = baud;
    b->frame_most = BRIDGE_FRAME_MOST;
    b->seeds[BRIDGE_CHANNEL_COMMAND] = BRIDGE_SCHEMA_HASH;
    for (uint8_t i = 0; i < channel_count; i++) {
        const bridge_channel *row = &channels[i];
        if (row->type < BRIDGE_TYPE_I16 || row->type > BRIDGE_TYPE_OBJECT || row->elements < 1 ||
            row->elements > BRIDGE_ELEMENT_LIMIT || row->millihertz > BRIDGE_RATE_LIMIT || !length(row->name) ||
            length(row->name) > BRIDGE_NAME_LIMIT || length(row->unit) > BRIDGE_UNIT_LIMIT)
            return false;
        b->position = b->from = b->to = 0;
        b->object_crc = ~(uint32_t)BRIDGE_SCHEMA_HASH;
        put_row(b, row);
        b->seeds[BRIDGE_CHANNEL_FIRST + i] = ~b->object_crc;
    }
    b->decoder.frame = b->rx;
    b->decoder.limit = BRIDGE_FRAME_MOST;
    b->decoder.seeds = b->seeds;
    b->decoder.seed_count = BRIDGE_CHANNEL_FIRST; /* a host sends nothing on streams */
    if (retained->magic != RETAINED) {
        retained->session = 0;
        retained->begun = retained->next = 0;
    } else if (retained->begun != retained->next) {
        retained->next = retained->begun; /* its result says that it was interrupted */
    }
    b->tx[0] = 0; /* ends what a reset cut off */
    b->tx_end = 1;
    hello(b, 0);
    return true;
}

void bridge_receive(bridge *b, const uint8_t *bytes, size_t count) {
    while (count--)
        if (bridge_decode(&b->decoder, *bytes++) == BRIDGE_ACCEPTED) on_frame(b, b->rx, b->decoder.size);
}

static void return_to(bridge *b, uint32_t baud) {
    b->baud_trial = false;
    if (b->baud != baud) b->port->set_baud(b->port->board, b->baud = baud);
}

static void poll_baud(bridge *b) {
    if (b->baud_pending && b->tx_start == b->tx_end) {
        b->baud_pending = false;
        b->baud_trial = b->port->set_baud(b->port->board, b->baud);
        b->baud_since = now(b);
        if (!b->baud_trial) b->baud = b->baud_before;
    } else if (b->baud_trial && now(b) - b->baud_since > BRIDGE_BAUD_TRIAL_MS * 1000u) {
        return_to(b, b->baud_before);
    }
}

void bridge_poll(bridge *b) {
    uint32_t time = now(b);
    if (b->greeted && time - b->heard > BRIDGE_SILENCE_MS * 1000u) {
        b->greeted = false;
        return_to(b, b->baud_first); /* where the next host will look */
    }
    if (!b->greeted && time - b->announced > BRIDGE_ANNOUNCE_MS * 1000u) hello(b, 0);
    for (uint8_t i = 0; i < b->channel_count; i++)
        if (b->greeted && b->streams[i].starved && time - b->streams[i].asked > BRIDGE_CREDIT_ASK_MS * 1000u)
            ask_credit(b, i);
    if (b->tx_start != b->tx_end)
        b->tx_start = (uint16_t)(b->tx_start + b->port->write(b->port->board, b->tx + b->tx_start,
                                                             (size_t)(b->tx_end - b->tx_start)));
    poll_baud(b);
}

/* Whether the channel may now send a frame with this much payload. */
static bool open_stream(bridge *b, uint8_t index, uint8_t flags, uint32_t time, uint32_t payload) {
    uint16_t sequence = b->streams[index].sequence;
    if (!b->greeted || b->baud_pending) return false;
    if (!b->streams[index].granted) return false;
    if ((int16_t)(b->streams[index].limit - sequence) <= 0) {
        b->streams[index].starved = true;
        b->starved++;
        return false;
    }
    if (!bridge_open_frame(b, (uint8_t)(BRIDGE_CHANNEL_FIRST + index), flags, sequence, time, payload, RESERVE)) return false;
    b->streams[index].sequence++;
    return true;
}

uint8_t bridge_stream_most(const bridge *b, uint8_t index) {
    uint32_t size = (uint32_t)VALUE_SIZE[b->channels[index].type] * b->channels[index].elements;
    uint32_t count = size ? ((uint32_t)b->frame_most - OVERHEAD) / size : 0;
    return (uint8_t)(count < UINT8_MAX ? count : UINT8_MAX);
}

bool bridge_stream(bridge *b, uint8_t index, const void *samples, uint8_t count, uint32_t time) {
    if (index >= b->channel_count || count > bridge_stream_most(b, index)) return false;
    size_t size = (size_t)VALUE_SIZE[b->channels[index].type] * b->channels[index].elements * count;
    if (!open_stream(b, index, 0, time, (uint32_t)size)) return false;
    bridge_put_bytes(b, samples, size);
    bridge_close_frame(b);
    return true;
}

bool bridge_object_send(bridge *b, bridge_object *object) {
    uint32_t most = (uint32_t)b->frame_most - OVERHEAD, total = object->size + CRC_SIZE;
    if (object->size <= most) total = object->size; /* a single frame: its CRC suffices */
    if (!object->sent) object->crc = bridge_crc32(0, object->bytes, object->size);
    while (object->sent < total || !total) {
        uint32_t piece = total - object->sent < most ? total - object->sent : most, end = object->sent + piece;
        uint8_t flags = (uint8_t)((object->sent ? BRIDGE_FLAG_CONTINUED : 0) | (end < total ? BRIDGE_FLAG_MORE : 0));
        if (!open_stream(b, object->index, flags, now(b), piece)) return false;
        for (uint32_t i = object->sent; i < end; i++)
            bridge_put(b, i < object->size ? object->bytes[i] : object->crc >> 8 * (i - object->size), 1);
        bridge_close_frame(b);
        object->sent = end;
        if (!total) break;
    }
    return true;
}
