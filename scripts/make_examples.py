"""Write the three small data sets of examples/: spam.jsonl, traffic.jsonl and support.jsonl.

    python scripts/make_examples.py                  # writes into examples/
    python scripts/make_examples.py --output FOLDER

All of it is invented here: sentences with choices in them, people, places, brands and numbers that stand for nobody. Web addresses end
in .example and telephone numbers come from the range that is kept for fiction (07700 900xxx). The same script always writes the same bytes.

    spam.jsonl      text, label                 600 rows: spam or ham, with hard cases on both sides
    traffic.jsonl   report, category            600 rows: accident, congestion, roadworks, weather, closure, clear
    support.jsonl   message, answer             900 rows: answer is an object with product, issue, urgency and order; product and
                                                order stand in the message letter for letter, so that a model has to copy them

A sentence is written with `[one|another|]` for a choice (they nest) and `{town}` for a word of a list or a small function.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

Slot = list[str] | Callable[[random.Random], str]


def words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def expand(sentence: str, slots: dict[str, Slot], random_: random.Random) -> str:
    """The sentence with one alternative of each `[a|b]` taken, innermost first, and each `{slot}` filled."""
    while match := re.search(r"\[([^\[\]]*)\]", sentence):
        sentence = sentence[: match.start()] + random_.choice(match[1].split("|")) + sentence[match.end() :]

    def fill(match: re.Match[str]) -> str:
        slot = slots[match[1]]
        return slot(random_) if callable(slot) else random_.choice(slot)

    return re.sub(r" {2,}", " ", re.sub(r"\{(\w+)\}", fill, sentence)).strip()


def digits(n: int) -> Slot:
    return lambda random_: str(random_.randrange(10 ** (n - 1), 10**n))


# --- spam or ham ----------------------------------------------------------------------------------------------------

PEOPLE = words("Priya Tom Aisha Marek Joanna Dev Lucy Carlos Hannah Yusuf Ingrid Ben Mei Rosa Kofi Elena Sean Nadia Theo Grace Omar Freya")
MESSAGE_SLOTS: dict[str, Slot] = {
    "name": PEOPLE,
    "other": ["Mum", "Dad", "Gran", "Uncle Joe", "Auntie Bea", "the twins", "your sister", "my brother", "the neighbours"],
    "shop": ["Brightway", "Halden & Co", "Cosy Corner", "Northgate Sports", "Petal Lane", "Marlow Shoes", "Ember Home", "Quickbasket"],
    "bank": ["Fernhill Bank", "Crestline", "Oakhill Savings", "Union Direct", "Harbourside Bank", "Mintstone Online"],
    "carrier": ["ParcelHop", "SwiftVan", "Postline", "BoxRunner", "DropPoint"],
    "prize": ["holiday for two", "brand new phone", "luxury hamper", "games console", "weekend in Paris", "family car", "smart TV", "shopping spree"],
    "amount": lambda r: f"{r.choice('£$')}{r.choice([r.randrange(2, 10) * 50, r.randrange(10, 99) * 10, r.randrange(1, 10) * 1000])}",
    "small": lambda r: f"{r.choice('£$')}{r.randrange(1, 4)}.{r.choice(['99', '49', '20', '95'])}",
    "link": lambda r: r.choice(["http://", "www.", ""]) + r.choice(
        words("claim-now quick-check secure-login my-reward parcel-fix id-verify easycash bonus-hub deal-drop track-fee refund-desk vip-club")
    ) + r.choice(["", str(r.randrange(10, 99)), "-uk", "24"]) + ".example" + r.choice(["", "/go", f"/{r.randrange(1000, 9999)}"]),
    "phone": lambda r: f"07700 900{r.randrange(1000):03d}",
    "short": digits(5),
    "code": digits(6),
    "time": lambda r: r.choice([f"{r.randrange(1, 12)}{r.choice(['am', 'pm'])}", f"{r.randrange(8, 22)}:{r.choice(['00', '15', '30', '45'])}", f"half {r.choice(['six', 'seven', 'eight', 'nine'])}"]),
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "tomorrow", "tonight", "next week", "on the weekend"],
    "place": ["the station", "the park", "our place", "the cinema", "the pool", "the office", "Luigi's", "the library", "the gym", "the bus stop", "the corner cafe"],
    "food": ["pizza", "curry", "noodles", "tacos", "leftovers", "that lentil soup", "pancakes", "sushi", "a roast"],
    "thing": ["charger", "umbrella", "notebook", "blue jacket", "spare keys", "guitar", "drill", "tent", "passport", "pasta dish", "football"],
    "team": ["Rovers", "the under-tens", "our quiz team", "the girls", "City"],
    "work": ["the slides", "that report", "the invoice", "the rota", "the budget sheet", "your draft", "the minutes"],
    "percent": ["20%", "30%", "half price", "40%", "60%", "75%"],
}  # fmt: skip

SPAM = [
    "[CONGRATULATIONS!|Congrats!|WINNER!!|Good news {name}!] You have been [chosen|selected|picked] [to receive|for] a [free|FREE] {prize}. [Claim|Collect] it [now|today|before midnight] at {link}",
    "Your [mobile number|email address|household] has won {amount} in our [weekly|monthly|spring] draw. To [claim|collect] [text|send] [YES|WIN|CLAIM] to {short}. [18+ only|Terms apply|Reply STOP to opt out]",
    "{carrier}: your [parcel|package|delivery] could not be [delivered|released] because a [fee|charge] of {small} is unpaid. [Pay|Settle it] here [within 24 hours|today] or it will be returned: {link}",
    "{bank} [ALERT|security notice]: we [noticed|blocked] a [payment|login] [you did not make|from a new device]. [Confirm|Verify] your [password and card number|details] [at once|immediately] at {link} or your account will be [locked|suspended]",
    "[Need|Short of] cash [before payday|this month|fast]? [Borrow|Get] up to {amount} [today|in ten minutes], [no credit check|bad credit welcome|no questions asked]. Apply: {link}",
    "[Hi mum|Hi dad|Hello mum], [I dropped my phone|my phone broke|I lost my phone], this is my [new|temporary] number. [I can't get into my bank|My card is blocked], could you [send|transfer] {amount} to a friend for me? [I'll pay you back|I will explain later]",
    "Earn {amount} a [day|week] [from home|from your sofa|on your phone], [no experience needed|no boss|just two hours a day]! [Only a few places left|Places are going fast]. Message [Lena|Mr Grant|our team] on {phone}",
    "[Tax office|Revenue desk|Treasury]: you are [owed|due] a [refund|rebate] of {amount}. [Submit|Enter] your [bank details|card number] at {link} [to receive it|before it expires]",
    "My [trading bot|crypto group|mentor] [turned {amount} into ten times that|made {amount} profit] in [one week|three days]. [Guaranteed returns|Zero risk], [join us|get in early] at {link}",
    "[Hey handsome|Hello dear|Hi sweetie], I saw your [profile|photo] and I [feel|think] we [should meet|have a connection]. My [private pics|new photos] are at {link} [xx|kisses|]",
    "[FINAL|LAST] [NOTICE|WARNING]: your [car warranty|insurance|antivirus|domain] [expires|runs out] today. [Call|Ring] {phone} [now|right away] to [avoid charges|stay protected|renew at {percent} off]",
    "[SALE|MEGA SALE|48h ONLY]: {percent} off [everything|all watches|designer bags|pills and supplements] at {link}. [Buy now|Hurry|While stocks last]! [Text STOP to {short}|]",
    "Your [streaming|video|music] [plan|membership] [has been suspended|could not be renewed]. Update your [card|payment details] [in the next 12 hours|now] at {link} to keep watching",
    "[Urgent|Important]: [someone|a person near you] [reported|mentioned] your [page|account] for [copyright|abuse]. [Appeal|Log in] at {link} within 24 hours or it will be [deleted|removed for ever]",
    "Dear [customer|friend|sir or madam], I am [a lawyer|the widow of a minister|a bank officer] with {amount} [that belongs to your late relative|to share with you]. [Reply in confidence|Send your full name and account] to {link}",
    "[Lose|Drop] [10 kilos|two dress sizes] in [a month|30 days] [without dieting|with one simple gummy]! Doctors [hate|won't tell you about] it. [Free trial|First box free], [pay only|just] {small} postage: {link}",
    "{shop} [survey|feedback]: answer three questions and [receive|get] a {amount} [voucher|gift card] [guaranteed|on us]. {link}",
    "You have [1|2|3] unread [private|secret] [messages|admirers]. [Find out who|See them] by [calling|texting LOVE to] {short}. [Calls cost {small} a minute|{small} per message]",
    "[Were you|Have you been] in an accident that was not your fault? You [may be owed|could claim] {amount}. [No win no fee|It takes 2 minutes]. [Reply YES|Text CLAIM to {short}|Call {phone}]",
    "[Hello|Good day], our [company|warehouse|agency] is hiring [product reviewers|part time packers|likers of videos], [pay|salary] {amount} [daily|a day]. [No interview|Start at once]. Add {phone} on chat",
    "[Casino|Lucky Wheel|Slots] bonus: [50|100|200] free spins [waiting|reserved] for {name}! [No deposit|Deposit {small} only]. [Play|Spin] now {link}",
    "[Re: your order|Invoice attached|Payment received]: {amount} will be [charged|debited] [today|tonight] for [PC protection|your antivirus plan]. [If this was not you|To cancel] [call|dial] {phone} [immediately|]",
    "[Hi|Hey], is this {name}? [We met|I got your number] [at the conference|from a friend], I [have|know] an [investment|opportunity] that pays {amount} [monthly|every week]. [Ask me how|Interested]?",
    "Your {bank} code is {code}. If you did NOT ask for it, [call our fraud team on|ring] {phone} and [read it to the agent|have your card ready]",
    "[Free|Complimentary] [solar panels|boiler|new windows|roof check] [for homeowners|in your area] [this month|until Friday]! [Government grant|Limited scheme]. [Reply with your postcode|See if you qualify]: {link}",
    "[Exclusive|VIP] [invite|access]: [tickets|front row seats] for the sold out [tour|final] from {small}. [Only 5 left|Selling fast]. Pay by [gift card|bank transfer] at {link}",
]

HAM = [
    "[Are you|Is {name}] [still|] [coming|on] [for|to] [dinner|the film|the match] {day}? [We're meeting|Meet] at {place} [around|about] {time}",
    "[Sorry|So sorry], [running|going to be] [ten|twenty|a few] minutes late, [the bus never came|traffic is awful|the meeting overran]. [Start without me|Save me a seat|See you soon]",
    "[Can|Could] you [pick up|grab|get] [milk|bread|some eggs|nappies|cat food] [on your way home|on the way back|if you pass the shop]? [Thanks|Love you|Ta] [x|]",
    "[Happy birthday|Many happy returns] {name}! [Hope you have a lovely day|Have a great one|Cake at {time}?] [xx|]",
    "{name} [left|forgot] [her|his|the] {thing} at {place}, [can you bring it|I'll drop it off] {day}",
    "I've [sent|emailed|uploaded] {work}, [let me know|tell me] [what you think|if anything is missing|if the numbers look right]",
    "[Thanks|Thank you] [so much|] for [last night|the {thing}|helping us move|dinner], [it was lovely|we had a great time|you saved us]",
    "{carrier}: your parcel [was left with|has been handed to] [a neighbour|reception|the person at the door] at {time}. [No action is needed|Thank you for waiting]",
    "Your [appointment|check-up|eye test] with [Dr Patel|Dr Novak|the dentist|the nurse] is [booked|confirmed] for {day} at {time}. [Call the surgery|Phone us] if you [can't make it|need to change it]",
    "{code} is your {bank} [login|sign-in] code. [Never share it|Do not tell anyone], [not even our staff|we will never ask for it]",
    "[We won|They won]!! {team} [beat them|took it] [three nil|in extra time|by a point], [free|] drinks [on the captain|on me] {day}",
    "Do you [fancy|want] {food} [tonight|for lunch|{day}] or [shall I cook|are you eating out]?",
    "{other} [is|are] [asking|wondering] if [you|we] can [come over|babysit|help with the shed|look at the computer] {day}. [I said probably|What shall I say]?",
    "[Train|Flight|Ferry] [is delayed|got cancelled] again, [won't be home before|probably back at] {time}. [Don't wait up|Feed the dog please|Keep me some {food}]",
    "[Can we|Could we] move [our call|the meeting|the review] to {day} [at {time}|after lunch]? {name} [is off sick|has a clash|needs more time on {work}]",
    "[Just landed|Home safe|Got here fine], [call you later|the kids are asleep|weather is glorious]. [Miss you|Speak {day}|]",
    "[Did you see|Have you seen] {name}'s [photos|new flat|message in the group]? [So funny|Made me cry|Looks amazing]",
    "[School|Nursery|The club]: [sports day|the trip|swimming] is [moved to|on] {day}. [Please bring|Children need] [a packed lunch|wellies|a water bottle]. [Newsletter|Details] at [www.|]oakfield-school.example",
    "I [won|got] the [raffle|office sweepstake], [can you believe it|first time ever]! [It's only|The prize is] [a box of biscuits|a plant|{small}] [but still|lol|haha]",
    "[Where|What time] [are we meeting|is the party|does it start] {day}? [{name} said|I thought it was] {time}",
    "I [owe you|still owe you] {small} for [the coffee|parking|the taxi], [remind me|I'll transfer it] {day}",
    "[Your order|Order {short}] from {shop} is ready to collect. [We are open until|The desk closes at] {time}. [Bring|Please have] your [receipt|order number]",
    "[Ok|Okay|Sure|No problem], [will do|see you then|sounds good|I'll ask {name}]. [Do I need to bring anything|Want me to drive|Text me when you leave]?",
    "[Is|Was] the [{thing}|spare room|dog] ok? [I can come and check|Ring me if not], I'm [at {place}|home] until {time}",
    "[Call me|Ring me] when you [can|get this|are free], [nothing urgent|it's about {other}|need to ask you something about {work}]",
    "[The landlord|The plumber|The vet] [rang|called back], [he can come|she'll be there] {day} [at|around] {time}. [It will cost about|He wants] {amount}",
    "[Reminder|Note] from {name}: [please|don't forget to] [water the plants|take the bins out|sign the card|send {work}] [before {day}|by {time}]",
    "[Can you send me|What's] [the link|the address|your bank details] [for|so I can pay you back for] [the gig|the {thing}|{name}'s present]? [We each owe|It came to] {small}",
    "[Congratulations|Well done] on the [new job|baby|exam results|marathon], {name}! [So pleased for you|You deserve it|We must celebrate {day}]",
    "[Free|Are you free] {day}? [{other} gave me|I have] a spare ticket for [the play|the concert|{team}], [no charge|it's yours] if you [want it|can get there by {time}]",
]


def roughen(text: str, random_: random.Random) -> str:
    """The ways in which people type; both labels get them alike."""
    chance = random_.random()
    if chance < 0.15:
        text = text[0].lower() + text[1:]
    elif chance < 0.22:
        text = text.replace("you", "u").replace("your", "ur").replace("please", "pls")
    elif chance < 0.30:
        text = text.replace("'", "").replace(",", "")
    return text + ("." if text[-1].isalpha() and ".example" not in text[-30:] and random_.random() < 0.4 else "")


def rows_of(
    templates: list[str], slots: dict[str, Slot], n: int, random_: random.Random, finish: Callable[[str, random.Random], str]
) -> list[str]:
    """`n` different texts, each template used about equally often."""
    texts: dict[str, str] = {}
    turn = 0
    while len(texts) < n:
        text = finish(expand(templates[turn % len(templates)], slots, random_), random_)
        texts.setdefault(text.casefold(), text)
        turn += 1
    return list(texts.values())


def spam_rows(random_: random.Random) -> list[dict[str, object]]:
    return [
        {"text": text, "label": label}
        for label, templates in (("spam", SPAM), ("ham", HAM))
        for text in rows_of(templates, MESSAGE_SLOTS, 300, random_, roughen)
    ]


# --- traffic reports ------------------------------------------------------------------------------------------------

TRAFFIC_SLOTS: dict[str, Slot] = {
    "road": lambda r: r.choice([
        f"the {r.choice('ABM')}{r.randrange(2, 990)}", f"{r.choice(['Station', 'Castle', 'Victoria', 'Abbey', 'Chapel', 'Quarry', 'Dock'])} {r.choice(['Road', 'Street', 'Lane'])}",
        f"the {r.choice(['ring road', 'bypass', 'coast road', 'toll bridge', 'airport link', 'old high street', 'river tunnel'])}",
        f"exit {r.randrange(2, 48)} of the {r.choice(['motorway', 'orbital', 'expressway'])}",
    ]),
    "town": ["Kelmore", "Ashby Cross", "Westhaven", "Dunmarch", "Little Orton", "Saltbridge", "Penwick", "Holloway Green", "Marchbank", "Fenny Down", "Castle Eaves", "Upper Thane"],
    "way": ["northbound", "southbound", "eastbound", "westbound", "in both directions", "towards the centre", "away from town", "heading for the coast"],
    "minutes": lambda r: f"{r.randrange(1, 10) * 5 + 5}",
    "miles": ["one mile", "two miles", "three miles", "four miles", "half a mile"],
    "clock": lambda r: f"{r.randrange(1, 13)}{r.choice(['', ':15', ':30', ':45'])}{r.choice(['am', 'pm'])}",
    "vehicle": ["van", "lorry", "taxi", "motorbike", "school bus", "tanker", "caravan", "pick-up", "delivery truck", "camper"],
    "when": ["Monday morning", "the end of the month", "Thursday night", "late August", "Easter", "next Sunday", "mid November"],
}  # fmt: skip

TRAFFIC = {
    "accident": [
        "[A crash|A collision|A smash] between a {vehicle} and a {vehicle} [is blocking|has blocked] [one lane|the outside lane|a lane] [of|on] {road} {way} near {town}",
        "[Two|Three|Four] cars [have hit each other|have run into each other|ended up in a shunt] on {road} [at|by] {town}, [ambulance on scene|police are there|tow truck on its way]",
        "[An overturned|A toppled] {vehicle} [lies across|is on its side on] {road} {way}, [emergency services attending|firefighters are freeing the driver]",
        "[Rear-end bump|Minor prang|Multi-car pile-up] reported at {clock} on {road}, [no injuries so far|two people hurt|one lane passable], [take care|slow down] near {town}",
        "[Caller says|A listener tells us|We hear] a {vehicle} [struck the barrier|left the road|skidded into a ditch|hit a lamp post] on {road} [close to|just past] {town}",
        "[A cyclist|A pedestrian|A motorcyclist] [has been knocked down|was hit by a {vehicle}] on {road} in {town}, [paramedics are treating the rider|police ask for witnesses]",
        "[Head-on collision|Serious crash|Side-on crash] on {road} {way} [at|around] {clock}, [air ambulance landing|officers directing cars past the wreck]",
        "{road} {way}: a {vehicle} [jackknifed|spun round|lost its load after an impact] [beside|outside] {town} and [was hit by|collided with] a {vehicle}",
        "[Injuries reported|Airbags went off|Glass all over the carriageway] after a {vehicle} [ran into|clipped|rammed] a {vehicle} on {road} [at|near] {town}",
    ],
    "congestion": [
        "[Queues of|Tailback of|Slow traffic for] {miles} on {road} {way}, [add|allow] {minutes} minutes",
        "[Heavy|Very heavy|Stop-start] traffic [through|into|around] {town} [this evening|after the match|with everyone heading home], {road} [is crawling|barely moves]",
        "[Bumper to bumper|Nose to tail] on {road} [from|before] {town}, [delays of|expect] {minutes} minutes",
        "{road} [is packed|is jammed|is at a standstill] {way} [because of|thanks to] [the concert|holiday traffic|Christmas shoppers|the school run]",
        "[Rush hour is|Commuters are] [worse than usual|slow] on {road}, [it takes|people report] {minutes} minutes [to reach|from the lights to] {town}",
        "Long [lines|queues] [at the toll booths|for the car park|at the roundabout] on {road} near {town}, [average speed|moving at] [10|15|5] miles an hour",
        "[Patience needed|Leave early]: [sheer weight of traffic|sheer volume of cars] [slows|is holding up] {road} {way} [until about|till] {clock}",
        "[Drivers are inching along|Hardly any movement on] {road} [between|from] {town} [to|and] the [river|ring|stadium], [journey time has doubled|{minutes} minutes late already]",
        "[Festival|Market day|Cup final] traffic: [crowded|clogged] [roads|streets] in {town}, {road} [worst hit|slowest of all], {minutes} minute [wait|delay]",
    ],
    "roadworks": [
        "[Resurfacing|Repaving|Pothole repairs] on {road} [near|at] {town} until {when}, [one lane open|temporary lights|a convoy system in use]",
        "[Water|Gas|Broadband] [company|engineers] [digging up|working on] {road} in {town}, [stop and go boards|temporary signals] until {when}",
        "[Lane reduced|Narrow lanes|Speed limit 40] on {road} {way} while [crews replace the barrier|workers paint new lines|a new junction is built]",
        "[Overnight|Weekend|Daytime] [maintenance|works] on {road} from {clock}: [cones out|one side shut at a time], [lasting|to go on] until {when}",
        "[Contractors|Workmen|Council crews] are [laying cables|mending the drains|trimming trees|fitting a crossing] along {road} [by|past] {town}",
        "Temporary traffic lights [at|on] {road}, {town}, [for|during] [sewer repairs|kerb works|pipe laying], [planned to last|there] until {when}",
        "[Diggers|Cones and barriers|Rollers] [back|in place] on {road} {way} [as|because] the [bridge strengthening|widening scheme|tarmac job] [goes on|enters its last phase]",
        "[Planned|Scheduled] [engineering works|repair works] [begin|start] on {road} at {town} [tonight|tomorrow] and [last|run] until {when}, [contraflow in place|the left lane will be coned off]",
        "[A crew is|Teams are] [patching the surface|replacing manhole covers|renewing road markings] on {road}, [expect short waits|follow the boards] near {town}",
    ],
    "weather": [
        "[Thick|Dense|Freezing] fog on {road} [around|near] {town}, [visibility below 50 metres|headlights needed|keep your distance]",
        "[Ice|Black ice] [reported|forming] on {road} {way}, [gritters are out|drive gently|several drivers slid] at {clock}",
        "[Heavy|Torrential|Driving] rain [makes for spray|brings deep puddles|is pooling] on {road} [by|at] {town}, [slow down|brake early]",
        "[Strong|Gale force] [gusts|winds] on {road}: [high-sided vehicles at risk|branches coming down|hold the wheel tight] [near|past] {town}",
        "[Snow|Sleet|Hail] is [settling|falling] on {road} [above|round] {town}, [winter tyres advised|ploughs are on the way]",
        "[Standing|Surface] water [covers part of|after the storm on] {road} {way}, [aquaplaning likely|take it slowly], {town} [area|side]",
        "[Low sun|Dazzling sunshine|A dust cloud] [makes it hard to see|is blinding drivers] on {road} {way} at {clock}",
        "[Storm|Yellow|Amber] warning for {town}: [wet leaves|slippery surfaces|drifting snow] on {road} [tonight|until {clock}]",
        "[It's pouring|Thunder and hail|Blizzard] [around|over] {town}, {road} [still passable but slippery|treacherous], [leave more time|go only if you must]",
    ],
    "closure": [
        "{road} is [shut|closed|sealed off] {way} [at|near] {town}, [diversion signed|follow the yellow signs|no way through]",
        "[Police have closed|Officers have shut] {road} [both ways|completely] at {town}, [reopening not expected before|shut until] {clock}",
        "[No through traffic|Nothing can pass] on {road}: [the bridge is up|a wall has collapsed|a burst main has washed it away], [use the detour|turn back] at {town}",
        "[Fully closed|Closed to all vehicles]: {road} [through|in] {town} [for the carnival|for the marathon|for filming|because of a gas leak] until {clock}",
        "[Road closed|Closure]: {road} {way}, [traffic is sent round|diversion] via {town}, [shut|in place] until {when}",
        "[Barriers are down|The gates are locked] at {road}, {town}; [motorists must turn round|detour of {miles}], [shut|like this] until {when}",
        "The [tunnel|ford|level crossing|swing bridge] on {road} [is out of use|stays shut] [today|until {when}], [go round|cross] at {town} instead",
        "[All lanes shut|Both carriageways shut] on {road} [after|following] [an incident|a fire|a chemical spill], [cars are being turned round|leave at {town}]",
        "You [can't get|cannot drive] [through|along] {road} [at|past] {town}: [landslip|fallen pylon|sinkhole], [blocked off|sealed] until {when}",
    ],
    "clear": [
        "[All clear|Good news]: the [crash|incident|breakdown] on {road} [has been removed|is dealt with], traffic [flows|is moving] [freely|normally] near {town}",
        "{road} [has reopened|is open again] {way} [after this morning's closure|following repairs], [no delays|running well]",
        "[No problems|Nothing to report] on {road} [around|near] {town}, [smooth run|light traffic] at {clock}",
        "[Roadworks|The cones] on {road} [are gone|finished early], [both lanes are open|free run] [to|past] {town}",
        "[Fog has lifted|The ice has melted|Flood water has drained] on {road}, [conditions are fine|dry and bright] [at|towards] {town}",
        "[Easy|Quiet|Trouble-free] driving on {road} {way} [this morning|tonight], [journey times normal|about {minutes} minutes to {town}]",
        "[Queues have gone|Earlier jams have eased|The tailback has vanished] on {road}, [back to normal|clear road] [since|from] {clock}",
        "The {vehicle} that [broke down|overturned|spilled its load] on {road} [was towed away|is gone], [all lanes running|no more waiting] at {town}",
        "[Everything is moving well|Traffic is light] [round|through] {town}, {road} [included|looks fine], [enjoy the drive|no hold-ups]",
    ],
}


def report_style(text: str, random_: random.Random) -> str:
    text = text[0].upper() + text[1:]
    return text + random_.choice([".", ".", "", "!"]) if text[-1] not in "!?." else text


def traffic_rows(random_: random.Random) -> list[dict[str, object]]:
    return [
        {"report": text, "category": category}
        for category, templates in TRAFFIC.items()
        for text in rows_of(templates, TRAFFIC_SLOTS, 100, random_, report_style)
    ]


# --- support messages to JSON ---------------------------------------------------------------------------------------

BRAND_STARTS = words("Lum Vex Tand Orb Zeph Mira Kord Nim Sol Quar Hex Pell Aer Brio Cald Dyn Elo Fyr Glen Halc Jett Kest Lyr Mont")
BRAND_ENDS = words("ora el rix ico ano ium etta wave line on ex ity go ara evo ino ista us yx ette")
KINDS = words(
    "kettle|toaster|blender|vacuum|headset|speaker|router|keyboard|monitor|printer|desk lamp|food mixer|air fryer|coffee machine|"
    "hair dryer|electric toothbrush|heater|fan|baby monitor|doorbell|smartwatch|tablet|camera|bike computer|dishwasher|dehumidifier|"
    "pressure cooker|sewing machine|projector|thermostat|kitchen scale|razor|power bank|drill|lawnmower|e-reader|microphone|juicer|humidifier",
    "|",
)

ISSUES = {  # {p} is the product as it will stand in the answer
    "late delivery": [
        "[my|the] {p} [still hasn't arrived|has not come yet|should have been here {ago}]", "[where is|any news of] [my|the] {p}? It was [due|promised] {ago}",
        "I am [still waiting for|yet to receive] the {p} [I paid for|you shipped] {ago}", "the {p} is [days|a week] [late|overdue] and tracking [shows nothing|is stuck]",
    ],
    "damaged": [
        "the {p} [arrived|came|turned up] [cracked|dented|scratched|with a broken corner]", "[my|our] {p} was [smashed|in pieces|badly scuffed] when I [opened the box|unpacked it]",
        "there is a [big crack|deep dent|chip] in the {p} [you sent|that came {ago}]", "the courier must have dropped the {p}, the [casing|side|lid] is [split|bent]",
    ],
    "wrong item": [
        "I [ordered|asked for] the {p} but [got|received] [something else|a different model|another colour]", "you sent [me|us] the wrong thing [instead of|in place of] the {p}",
        "the box says {p} but [what's inside is not that|there is another product in it]", "[this isn't|that is not] the {p} I chose, it's [a cheaper one|the wrong size|the old version]",
    ],
    "missing part": [
        "the {p} came without [its cable|the manual|the lid|a plug|screws]", "[a part|one piece] of the {p} is [missing|not in the box], [the bracket|the adapter|a leg] I think",
        "there was no [charger|remote|battery|filter] [in the box with|packed with] the {p}", "[my|our] {p} is [incomplete|short of a piece], [the hose|the strap|the key] isn't there",
    ],
    "not working": [
        "the {p} [won't turn on|does not start|is dead] [any more|since {ago}|]", "[my|our] {p} [stopped working|died|keeps switching itself off] {ago}",
        "[nothing happens|no light comes on] when I [press the button on|plug in] the {p}", "the {p} [makes a grinding noise and stops|flashes red and gives up|freezes all the time]",
    ],
    "refund": [
        "I'd like my money back for the {p}", "[when will I get|where is] the refund for [my|the] {p} [I returned|that I sent back] {ago}?",
        "please [refund|reimburse] me for the {p}, [I sent it back {ago}|it has been returned]", "the {p} went back {ago} and [no money has come|my card has not been credited]",
    ],
    "billing": [
        "I was [charged twice|billed two times] for the {p}", "the [invoice|receipt] for [my|the] {p} shows [the wrong price|too much tax|a fee I don't know]",
        "[my card was debited|you took the payment] again for the {p} {ago}", "the [discount|voucher] was not [taken off|applied to] the bill for [my|the] {p}",
    ],
    "how to use": [
        "how do I [reset|clean|set up|pair] [my|the] {p}?", "[I can't find|where are] the instructions [for|on] [descaling|connecting|charging] the {p}[|?]",
        "[could you explain|can someone tell me] how to [connect|adjust|update|store] the {p}?", "which [setting|mode|button] of the {p} [do I use|is right] [for beginners|at night|to save power]?",
    ],
}  # fmt: skip

URGENCY = {
    "low": ["No rush[ at all|].", "[Whenever|Answer when] you have [time|a minute].", "It's not urgent.", "[Take your time|It can wait].", "Just [curious|asking], [any day is fine|no hurry]."],
    "normal": ["", "", "", "[Thanks|Thank you].", "[Please|Could you] let me know.", "What [can|should] I do?", "[Kind|Best] regards, {name}", "[Hope you can help|Please advise]."],
    "high": ["This is urgent[!|, please].", "I need [it|this sorted|an answer] [today|by tonight|before tomorrow].", "[Please reply at once|As soon as possible please|Right away please].",
             "[Third|Fourth] time I write about [this|it]!", "[I leave|We fly] tomorrow so [hurry|it must be solved today]."],
}  # fmt: skip

ORDER_PHRASES = [
    "[Order|My order is|Order number|Order no.] {o}.",
    "[It's|That's|This is] order {o}.",
    "([order|ref] {o})",
    "[The reference is|Ref:] {o}.",
    "[Bought|Purchased] under {o}.",
]
OPENINGS = ["", "", "", "Hi, ", "Hello, ", "Hi there, ", "Good morning, ", "Hey, ", "Dear team, ", "Hello support, "]
AGO = ["last week", "on Monday", "yesterday", "two weeks ago", "on the 3rd", "last month", "three days ago", "on Friday"]


def product(random_: random.Random) -> str:
    brand = random_.choice(BRAND_STARTS) + random_.choice(BRAND_ENDS)
    kind = random_.choice(KINDS)
    model = random_.choice(
        ["", "", "", f" {random_.choice('ABCEGHKLMRSTX')}{random_.randrange(1, 90)}", f" {random_.randrange(2, 10) * 100}", " Pro", " Mini"]
    )
    return random_.choice([f"{brand}{model} {kind}", f"{brand} {kind}{model}"])


def order_number(random_: random.Random) -> str:
    letters = "".join(random_.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    n = random_.randrange(10_000, 100_000)
    return random_.choice([f"{letters}-{n}", f"{letters}{n}", f"#{n}", f"{n}", f"{n // 100}-{letters}"])


def support_row(issue: str, urgency: str, with_order: bool, random_: random.Random) -> dict[str, object]:
    slots: dict[str, Slot] = {"ago": AGO, "name": PEOPLE}
    named, order = product(random_), order_number(random_) if with_order else None
    body = expand(random_.choice(ISSUES[issue]), slots | {"p": [named]}, random_)
    opening = random_.choice(OPENINGS)
    body = opening + body if opening else body[0].upper() + body[1:]
    body += "" if body[-1] in "?!." else "."
    parts = [body]
    if order is not None:
        reference = expand(random_.choice(ORDER_PHRASES), {"o": [order]}, random_)
        parts.insert(random_.choice([0, 1, 1, 1]) if not opening and reference[0] != "(" else 1, reference)
    parts.append(expand(random_.choice(URGENCY[urgency]), slots, random_))
    message = " ".join(part for part in parts if part)
    return {"message": message, "answer": {"product": named, "issue": issue, "urgency": urgency, "order": order}}


def support_rows(random_: random.Random) -> list[dict[str, object]]:
    """900 rows in which every issue meets every urgency about equally often and a quarter has no order number."""
    rows: dict[str, dict[str, object]] = {}
    issues, urgencies = list(ISSUES), list(URGENCY)
    while (n := len(rows)) < 900:
        row = support_row(issues[n % 8], urgencies[n // 8 % 3], random_.random() < 0.75, random_)
        rows.setdefault(str(row["message"]).casefold(), row)
    return list(rows.values())


MAKERS = {"spam.jsonl": spam_rows, "traffic.jsonl": traffic_rows, "support.jsonl": support_rows}


def write_all(folder: Path) -> None:
    for name, maker in MAKERS.items():
        random_ = random.Random(f"tunesmith {name}")
        rows = maker(random_)
        random_.shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_bytes(text.encode("utf-8"))
        print(f"{folder / name}: {len(rows)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "examples", help="the folder to write into")
    write_all(parser.parse_args().output)
