"""The grammar of the embedded public texts: written for this project, under its licence, from no data set.

`GRAMMAR` maps a symbol to its alternatives, separated by `|`; `<symbol>` in one is replaced by one of that symbol's.
"""

from __future__ import annotations

_RULES = {
    "text": "<message>|<message>|<message>|<mention>|<plan>|<news>|<review>|<review>|<howto>|<fact>|<speech>|"
    "<opinion>|<opinion>|<story>|<story>|<question>|<letter>|<record>",
    "message": "<opener> <thing> <verdict><close>|<thing> <verdict> and <thing> <verdict><close>|<feeling> about "
    "<thing> <when><close>|just <past> <object> <when>, <reaction><close>|<reaction>! <thing> <verdict>|can't "
    "believe <person> <past> <object> <when><close>|<when> at <place>: <thing> <verdict><close>|not sure if <thing> "
    "<verdict> or if I just need <food><close>|<number> hours at <place> and <thing> <verdict><close>",
    "mention": "@user <reaction>, <thing> <verdict><close>|@user did you see that <person> <past> <object> <when>?|"
    "@user @user <plan>|RT @user: <news>|@user thanks for <object>! <reaction> #<tag>|@user no, <opinion>",
    "plan": "<person> and I are going to <place> <when>, <invite>|If the weather holds we will be at <place> "
    "<when>.|Meet us at <place> at <hour>, and bring <object>.|<when> I have to <task>, so <place> must wait until "
    "<when>.|The <group> meets at <place> <when> from <hour> to <hour>.",
    "news": "<org> <announced> <item> <when>.|<org> and <org> <announced> <item>, <source>.|<item>: <org> says it "
    "<verdict>|Police in <city> are looking for <person> after <object> disappeared from <place> <when>.|<city> beat "
    "<city> <digit>-<digit> <when> in front of <number> thousand people.|Shares of <org> <moved> by <number> percent "
    "<when>, <source>.|The council of <city> votes on <item> <when>.",
    "review": "The <product> <verdict>, but the <part> <flaw>.|I bought this <product> <when> and the <part> "
    "<flaw>. <reaction>.|Five stars: <part>, <part> and price are all <good>.|One star. The <part> <flaw> after "
    "<number> days and <org> never answered.|It is a <product> like any other: the <part> is <middling>, the <part> "
    "is <middling>.|My <relative> loves the <product>; for me the <part> is too <middling>.|Stayed <number> nights "
    "at <place>. Room <good>, breakfast <bad>.|The film is <number> minutes long, the <part> is <good> and the end "
    "is <bad>.",
    "howto": "To <task>, first <step>, then <step>.|How do I <task>? Start with this: <step>, and never <step> "
    "before you <step>.|Step <digit>: <step>. Step <digit>: <step>.|Before you <task>, make sure that <object> is "
    "near at hand.",
    "fact": "A <animal> is <kind> that <does>.|Most <animal>s <does_plural>, and some <does_plural>.|<city> lies "
    "<number> kilometres from <city> and has about <number> thousand inhabitants.|In <year> <person> wrote down that "
    "a <animal> <does>.|Water boils at a lower temperature in the mountains, which is why <food> takes longer there.|"
    "<food> was <middling> in <city> until about <year>.",
    "speech": '"<opinion>" said <person>, and <past> <object>.|<person> asked: "<question>"|"<reaction>," <person> '
    'answered. "<plan>"|<person>: <question> <person>: <reaction>, <opinion>',
    "opinion": "I think <thing> <verdict>, because <reason>.|Honestly, <thing> <verdict>.|People who <task> should "
    "not complain about <thing>.|There is nothing as <good> as <food> <when>.|There is nothing as <bad> as <place> "
    "<when>.|Neither <thing> nor <thing> will change much, since <reason>.|<thing> may <task_plain>, yet <reason>.",
    "story": "When <person> <past> <object>, <animalphrase> <watched>.|<person> had lived in <city> for <number> "
    "years before <person> <past> <object>.|It was <hour> and <place> was <middling>; only <person> still <past> "
    "<object>.|Long ago <animalphrase> <past> <object>, and since then <reason>.|<person> <past> <object>, <past> "
    "<object>, and went to <place> without a word.",
    "question": "Does anyone know why <thing> <verdict>?|How long does it take to <task>?|Who <past> <object> "
    "<when>?|Is <city> far from <city>, and is the road <middling>?|What would you do if <person> <past> <object>?|"
    "Why is <food> so <middling> at <place>?|Which is the <good> one, <thing> or <thing>?",
    "letter": "Dear <person>, thank you for <object>. <opinion> Yours, <person>|Hello, I ordered a <product> "
    "<when> and the <part> <flaw>. Please <step>.|To all members of the <group>: <plan>|Dear sirs, <question> "
    "Regards, <person>",
    "record": "<field>: <value>, <field>: <value>, <field>: <value>, <field>: <value>|<field> <value>; <field> "
    "<value>; <field> <value>|<product>: <field> <value>, <field> <level>, <field> <level>|<city>, <year>: <field> "
    "<value>, <field> <value>|<field>: <level>, <field>: <level>, <field>: <level>, <field>: <level>",
    "opener": "so|well,|honestly|today|ok,|yes:|sadly|finally!|reminder:|update:|wow,|look,|again|it seems|"
    "apparently|I guess|good morning,|friends,",
    "thing": "the new timetable|my phone|this game|the second half|her last song|that exam|the match|their kitchen|"
    "the election|the weather|our landlord|this town|the train to <city>|the update|the whole season|the queue at "
    "<place>|the meeting|his speech|the price of <food>|my <relative>|the trailer|that story|the <group>|working at "
    "night|school|the internet|the heating|this week|<org>|<city>|the law|the strike|that joke|the vote|public "
    "transport",
    "verdict": "gets on my nerves|is a total mess|ruined my week|is hopeless|is down again|should never have "
    "happened|is such a bore|lets everybody down|hurts to watch|is going nowhere|begins at <hour>|is planned for "
    "<day>|takes <number> minutes|was moved to <day>|is open until <hour>|is sold in two sizes|is about <item>|costs "
    "<number> now|will be shown <when>|is a joy|cheered me up|could not be better|is really something|gets better "
    "and better|is so much fun|is worth every minute|makes me smile|is beautiful|deserves a prize|was well done",
    "close": "|.|!|...| :)| :(| #<tag>| lol|, they say| again|, thank you| @user| <when>|?|!!|, sorry| haha",
    "feeling": "so happy|excited|a bit worried|quite angry|sad|still laughing|curious|proud|tired of hearing|not "
    "sorry|nervous|thinking|dreaming|confused",
    "reaction": "oh no|great news|what a day|I am speechless|no way|fair enough|that's it|so proud|never again|"
    "finally|what a shame|good for them|I don't get it|well played|too late|makes sense|congratulations|please stop|"
    "I love it|it could be worse|here we go",
    "past": "finished|lost|found|sold|broke|opened|painted|missed|forgot|repaired|carried home|read|wrote|bought|"
    "cancelled|watched|borrowed|returned|photographed|hid|cleaned|heard|ate|won|dropped|described|followed",
    "object": "the last ticket|an old bicycle|a box of letters|the spare key|a red umbrella|the report|two cups of "
    "tea|his uncle's boat|the wrong bag|a map of <city>|the recipe for <food>|some paint|the guitar|a photograph of "
    "<place>|<number> pages|the first chapter|a winter coat|her passport|the garden gate|a bag of <food>|the song "
    "from the radio|a <product>|the bill|my birthday card|the answer|a long list",
    "person": "Anna|Tom|Maria|Mr Lee|Dr Okafor|Sofia|Ben|Mrs Novak|Ahmed|Julia|the mayor|my neighbour|Elena|Ravi|"
    "the coach|Grandma|Kenji|Lucy|the driver|Samuel|Ines|our teacher|Peter|Nadia|the singer|the doctor|Oscar|Mei",
    "relative": "sister|brother|mother|father|cousin|aunt|son|daughter|boss|dog|cat|flatmate",
    "place": "the library|the market|the station|the harbour|the stadium|the hospital|the school gate|the museum|"
    "the town hall|the beach|the old mill|the airport|the bakery|the cinema|the park|the office|the river bank|the "
    "church|the garage|the post office|the mountain hut|the concert hall|gate <number>|the bus stop",
    "when": "today|tomorrow|tonight|on <day>|on <day> morning|last night|this weekend|next month|in <month>|on the "
    "12th|on the 20th|at <hour>|before breakfast|after work|in the afternoon|this summer|in <year>|two weeks ago|"
    "every <day>|right now|later|for the first time",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "hour": "<digit> o'clock|noon|midnight|<digit>:30|half past <digit>|<digit> pm|<digit>:15 am",
    "invite": "do you want to come?|come along!|who is in?|everyone is welcome.|but only if it stays dry.|so don't "
    "wait for us.|see you there?",
    "group": "choir|chess club|parents' council|rowing team|book circle|first grade|fire brigade|garden society|"
    "night shift|youth orchestra|film club|union",
    "org": "the bank|the university|the ministry of health|the airline|a small brewery|the power company|the "
    "football club|the newspaper|the city theatre|the court|a software firm|the railway|the zoo|the weather service|"
    "the publisher|the hospital|the farmers' union|the museum",
    "announced": "announced|confirmed|delayed|rejected|promised|presented|cancelled|approved|explained|agreed on|"
    "apologised for|withdrew",
    "item": "a new bridge|higher fares|the budget for <year>|a plan against floods|free lunches|the sale of "
    "<place>|a ban on plastic bags|longer holidays|the return of the wolf|a record harvest|its results|a concert for "
    "<number> thousand people|lower taxes|a peace agreement|new rules for tenants|the repair of the dam|a vaccine",
    "source": "sources say|a speaker said|as was learned <when>|according to a letter|it said <when>|the radio reports",
    "moved": "rose|fell|gained|dropped|slipped",
    "city": "Lisbon|Oslo|Lagos|Kyoto|Denver|Prague|Lima|Cork|Nairobi|Turin|Perth|Quebec|Riga|Porto|Delhi|Bergen|"
    "Leeds|Izmir|Dresden|Sofia|Manila|Ghent|Austin|Tunis",
    "product": "kettle|laptop|pair of boots|tent|vacuum cleaner|camera|backpack|desk lamp|headset|coffee machine|"
    "novel|cook book|bicycle light|keyboard|jacket|drill|watch|mattress|phone case|board game",
    "part": "battery|handle|screen|zip|cover|lid|cable|sound|print|story|service|delivery|button|fabric|lens|strap|"
    "manual|colour|acting|music",
    "flaw": "broke|works as described|came loose|is better than expected|smells of glue|is missing|was scratched|"
    "is simply perfect|does its job|stopped working|arrived late|looks cheap|feels solid|is easy to clean|lasts all "
    "day",
    "good": "excellent|lovely|great|perfect|charming|brilliant|friendly|delicious|clever|reliable|bright",
    "bad": "terrible|cold|boring|rude|dirty|useless|noisy|expensive|disappointing|slow|ugly",
    "middling": "ordinary|heavy|quiet|small|plain|narrow|empty|long|common|rare|dry|loud|dark|average|wide|modern",
    "task": "repair a bicycle|bake bread|learn to swim|fill in the form|grow tomatoes|paint a wall|change a tyre|"
    "write a complaint|install the update|move house|plan a holiday|read a map|pass the exam|save money|cook for "
    "<number> guests|train a dog|file your taxes|sort old photographs",
    "task_plain": "help the poor|cost a fortune|save time|take years|bring people together|end in tears|look easy",
    "step": "turn off the power|wash your hands|open the lid|read the manual|measure twice|ask a neighbour|press "
    "the green button|wait <number> minutes|add a little salt|write down the number|remove the cover|close every "
    "window|check the oil|send us a picture|save your work|stir slowly",
    "reason": "nobody asked the people who live there|it rained for <number> days|the numbers do not add up|we all "
    "need a rest|<person> said so|time is short|it worked in <city>|the old one was better|children learn fast|money "
    "is not everything|the sea is rising|the evidence is thin|hope costs nothing|it always has been so",
    "animal": "heron|fox|whale|bee|hedgehog|owl|salmon|goat|bat|spider|horse|crow|snail|wolf|seal|beetle",
    "animalphrase": "the fox|an old horse|a crow|the whole village|three goats|the cat|a stranger|the children",
    "watched": "watched from <place>|ran away|said nothing|were already asleep|laughed|followed at a distance",
    "kind": "an animal|a creature of the night|a hunter|a small helper|a traveller|a builder",
    "does": "sleeps through the winter|can see in the dark|crosses the sea every year|eats mostly seeds|lives in "
    "groups|sheds its skin|builds its nest near water|finds its way by the stars|carries pollen",
    "does_plural": "sleep in the day|live in groups|fear fire|return every spring|eat almost anything|hunt alone|"
    "see colours that we do not|live for <number> years",
    "food": "fresh bread|lentil soup|coffee|rice|apple cake|fish|cheese|noodles|strawberries|pancakes|chocolate|"
    "salad|black tea|fried eggs|honey|pizza",
    "tag": "monday|weekend|news|football|music|travel|foodie|fail|blessed|nowplaying|rain|work|summer|art|books|help",
    "field": "height|width|depth|weight|mean speed|temperature|pressure|area|length|rainfall|age|price|rooms|"
    "voltage|distance|share of women|worst delay|largest step|error|smoothness of the surface|radius|texture|density|"
    "count",
    "value": "<number>|<digit>.<digit>|<number>.<digit>|0.<digit><digit>|0.0<digit><digit>|<number><digit>|"
    "<number>.<number>",
    "level": "low|very low|average|high|very high",
    "number": "10|11|12|14|15|17|18|20|23|25|26|30|34|37|40|45|48|52|60|67|75|80|88|90|95",
    "digit": "1|2|3|4|5|6|7|8|9",
    "year": "1789|1848|1902|1923|1950|1968|1977|1984|1991|1999|2004|2010|2016|2021",
}
GRAMMAR: dict[str, tuple[str, ...]] = {symbol: tuple(rule.split("|")) for symbol, rule in _RULES.items()}
