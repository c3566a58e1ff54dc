"""The rest of flow control in Lua: what comes back, claims, and limits set at run time.

Function by function the same as `returns`; see `redis_script`.
"""

from typing import Final

from taskq.flow.stores.redis_script import CELLS
from taskq.results.redis_scripts import make_script

_RETURNS: Final = """
local function mine(g, nonce)
  return g.nonce == '' or g.nonce == nonce
end

local function release_key(g)
  local cell, span = g.idempotency[1], g.idempotency[2]
  local state = get(cell)
  if g.outcome == 's' then
    if not (state and state[1] == 1 and state[3] > now) then
      put(cell, {1, g.id, now + span, ''}, span)
    end
  elseif state and state[1] == 0 and state[2] == g.id and mine(g, state[4]) then
    drop(cell)
  end
end

local function record(g)
  if not g.breaker then return '' end
  local cell, failures, window, reset = unpack(g.breaker)
  local fails, til, probe, probe_til, tail = unpack(get(cell) or {{}, 0, '', 0, 0})
  local failed = g.tripped and (g.outcome == 'f' or g.outcome == 'r')
  if til > 0 then
    if not g.probe or probe ~= g.id then return '' end
    if g.outcome == 'b' then
      put(cell, {fails, til, '', 0, tail}, max(0, tail - now) + KEEP)
      return ''
    end
    if not failed then
      drop(cell)
      return 'closed'
    end
    put(cell, {{now}, now + reset, '', 0, 0}, reset + KEEP)
    return 'opened'
  end
  if not failed then return '' end
  local recent = {}
  for _, at in ipairs(fails) do
    if at > now - window then recent[#recent + 1] = at end
  end
  recent[#recent + 1] = now
  if #recent < failures then
    put(cell, {recent, 0, '', 0, 0}, window)
    return ''
  end
  put(cell, {{now}, now + reset, '', 0, 0}, reset + KEEP)
  return 'opened'
end

local function release(g)
  if g.unique and (g.outcome == 's' or g.outcome == 'f' or g.outcome == 'e') then
    local state = get(g.unique)
    if state and state[1] == g.id and mine(g, state[3]) then drop(g.unique) end
  end
  if g.idempotency then release_key(g) end
  if g.slots then
    local slot = holder(g.slots, g.id)
    if slot and mine(g, slot.nonce) then
      unhold(g.slots, g.id)
      if g.outcome ~= 'b' then
        local tail, mean = line_of(g.slots)
        local took = now - slot.since
        if mean <= 0 then mean = took else mean = mean + (took - mean) * 0.2 end
        put(g.slots, {tail, mean}, max(0, tail - now) + KEEP)
      end
    end
  end
  return record(g)
end

local function renew(g, lease)
  if g.idempotency then
    local cell = g.idempotency[1]
    local state = get(cell)
    if state and state[1] == 0 and state[3] > now and state[4] == g.nonce then
      put(cell, {0, g.id, now + lease, g.nonce}, lease)
    end
  end
  if g.slots then
    local slot = holder(g.slots, g.id)
    if slot and slot.nonce == g.nonce then
      hold(g.slots, g.id, now + lease, g.nonce, slot.since)
    end
  end
  if g.breaker and g.probe then
    local cell = g.breaker[1]
    local state = get(cell)
    if state and state[2] > 0 and state[3] == g.id then
      put(cell, {state[1], state[2], g.id, now + lease, state[5]},
        max(0, state[5] - now) + lease + KEEP)
    end
  end
  return ''
end

local function claim(g)
  local cell, id, span, ends = g[1], g[2], g[3], g[4]
  local state = get(cell)
  if state and state[2] > now and not (ends and finished(state[1])) then return state[1] end
  put(cell, {id, now + span, ''}, span)
  return id
end

local function unclaim(g)
  local cell, id = g[1], g[2]
  local state = get(cell)
  if state and state[1] == id and state[3] == '' then drop(cell) end
  return ''
end

-- Claims are answered one by one; of the rest, pairs of (number, change) where a breaker changed.
local answers = {}
local what, lease = asked[1], asked[2]
for i, f in ipairs(asked[3]) do
  if what == 'claim' then answers[i] = claim(f)
  elseif what == 'unclaim' then answers[i] = unclaim(f)
  else
    local g = {id = f[1], nonce = f[2], outcome = f[3], tripped = f[4],
      unique = f[5] ~= '' and f[5], idempotency = f[6], breaker = f[7],
      slots = f[8] ~= '' and f[8], probe = f[9]}
    local change = (what == 'renew' and renew or release)(g, lease)
    if change ~= '' then
      answers[#answers + 1] = i
      answers[#answers + 1] = change
    end
  end
end
flush()
return answers
"""

_SET: Final = """
local settings = get('s:0::') or {0, {}}
settings[1] = settings[1] + 1
local name, value = asked[1], asked[2]
if name ~= '' then
  if value then settings[2][name] = value else settings[2][name] = nil end
end
put('s:0::', settings, 366 * 86400000000)
for _, cell in ipairs(asked[3]) do
  drop(cell)
  redis.call('DEL', slots_prefix .. cell, leases_prefix .. cell)
end
flush()
return settings[1]
"""

_HOLDERS: Final = """
local found = {}
for i, cell in ipairs(asked) do
  local ids, ends = {}, {}
  local pairs_ = redis.call('ZRANGE', leases_prefix .. cell, 0, -1, 'WITHSCORES')
  for at = 1, #pairs_, 2 do
    ids[#ids + 1] = pairs_[at]
    ends[#ends + 1] = pairs_[at + 1]
  end
  local texts = {}
  for at, id in ipairs(ids) do texts[at] = redis.call('HGET', slots_prefix .. cell, id) end
  found[i] = {ids, texts, ends}
end
return found
"""

RETURNS: Final = make_script(CELLS + _RETURNS)
SET: Final = make_script(CELLS + _SET)
HOLDERS: Final = make_script(CELLS + _HOLDERS)
